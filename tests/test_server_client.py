"""What no real server can be made to do: errors, hangs and wrong answers, by a local one."""

import base64
import http.server
import io
import json
import math
import sys
import threading
import time

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor
from video_files import frames

from vl_reward import RewardScorer, SamplingParameters, ServerScorer
from vl_reward.data.encoding import encode_prompts
from vl_reward.data.videos.video import load_video
from vl_reward.inference.probes import Probes
from vl_reward.inference.server_client import ServerClient, results
from vl_reward.inference.server_sampler import ServerSampler
from vl_reward.inference.vllm_sampler import VLLMSampler


PROMPT_TOKENS = 22  # of the prompt "six", with Qwen's system prompt
ANSWERED_TOKENS = 25  # with an answer of one letter
FEW = SamplingParameters(max_new_tokens=4, batch_size=3)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each request as `server.script` says for it, and counts how many it has at a time."""

    def do_GET(self):
        limit = {} if self.server.limit is None else {"max_model_len": self.server.limit}
        models = [{"id": "policy", "object": "model", **limit}]
        self.reply(200, {"object": "list", "data": models})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append((self.path, body))
            self.server.at_work += 1
            self.server.most = max(self.server.most, self.server.at_work)
        status, answer = self.server.script(self.path, body)
        with self.server.lock:
            self.server.at_work -= 1
        self.reply(status, answer)

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def start():
    started = []

    def one(script=None, limit=512):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.script, server.limit, server.lock, server.bodies = script, limit, threading.Lock(), []
        server.at_work = server.most = 0
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        started.append(server)
        return server

    yield one
    for server in started:
        server.shutdown()


def completion(body, tokens):
    choices = [{"message": {"content": f"answer {i}"}, "finish_reason": "stop"} for i in range(body["n"])]
    return 200, {"choices": choices, "usage": {"prompt_tokens": tokens}}


def text_of_request(body):
    return body["messages"][-1]["content"][0]["text"]


def test_what_fails_for_a_while_is_asked_again(start, processor):
    failures = {"one": [429, 500, 503], "two": [500] * 4}

    def script(path, body):
        left = failures.get(text_of_request(body))
        return (left.pop(0), {"error": "busy"}) if left else completion(body, PROMPT_TOKENS)

    sampler = ServerSampler(start(script).url, "policy", processor, FEW)
    assert sampler(["six", "one", "two"], [[], [], []], 2) == ([["answer 0", "answer 1"]] * 3, [["stop", "stop"]] * 3)
    assert failures == {"one": [], "two": []}


def test_a_prompt_that_is_refused_does_not_cost_the_others(start, processor):
    def script(path, body):
        return (400, {"error": "it is too long"}) if text_of_request(body) == "bad" else completion(body, PROMPT_TOKENS)

    sampler = ServerSampler(start(script).url, "policy", processor, FEW)
    responses, reasons = sampler(["six", "bad", "six"], [[], [], []], 1, ["row a", "row b", "row c"])
    assert responses == [["answer 0"], [], ["answer 0"]]
    assert "row b: http" in reasons[1][0] and "400" in reasons[1][0] and "it is too long" in reasons[1][0]


def test_thoughts_that_come_apart_from_the_response_are_refused(start, processor):
    message = {"content": "9", "reasoning_content": "I see 4 and 5."}
    answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": PROMPT_TOKENS}}
    with pytest.raises(ValueError, match="prompt 0: .* Start it without `--reasoning-parser`"):
        ServerSampler(start(lambda path, body: (200, answer)).url, "policy", processor, FEW)(["six"], [[]])


def test_every_parameter_is_sent_and_few_requests_are_in_flight(start, processor):
    def script(path, body):
        time.sleep(0.02)
        return completion(body, PROMPT_TOKENS)

    server = start(script)
    settings = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1}
    sampler = ServerSampler(server.url, "policy", processor, SamplingParameters(4, batch_size=3, **settings))
    assert sampler.max_prompt_tokens == 508
    sampler(["six"] * 12, [[]] * 12, 3)
    assert server.most == 3 and len(server.bodies) == 13
    asked = [body for _, body in server.bodies]
    assert [(body["max_tokens"], body["n"]) for body in asked] == [(1, 1)] + [(4, 3)] * 12
    assert all({key: body[key] for key in settings} == settings for body in asked)
    assert all(body["mm_processor_kwargs"]["size"] == dict(processor.image_processor.size) for body in asked)
    assert len({body["seed"] for body in asked[1:]}) == 12


def test_a_video_is_sent_as_its_frames_with_their_times(start, processor):
    """One request: a PNG for each frame that is seen, and another name for each of two videos."""
    clip = {"frames": frames(6), "fps": 3.0}
    prompts, images = [[{"role": "user", "content": "Which?"}]] * 2, [[], []]
    expected = [encode_prompts(processor, prompts[:1], [[]], ["row"], [[clip] * n]) for n in range(3)]
    lengths = {n: batch["input_ids"].shape[1] for n, batch in zip(range(3), expected, strict=True)}

    def parts_of(body):
        return [part for part in body["messages"][-1]["content"] if part["type"] == "video_url"]

    server = start(lambda path, body: completion(body, lengths[len(parts_of(body))]))
    sampler = ServerSampler(server.url, "policy", processor, FEW)
    sampler._tokens_per_second = 1.0  # of the model's configuration, which this server has none of
    assert sampler(prompts, images, videos=[[clip], [clip, clip]])[1] == [["stop"], ["stop"]]
    video = load_video(clip, processor)
    for _, body in server.bodies:
        parts = parts_of(body)
        assert body["media_io_kwargs"]["video"]["num_frames"] == -1
        for part in parts:
            kind, data = part["video_url"]["url"].split(",", 1)
            assert kind == "data:video/jpeg;base64"
            sent = [Image.open(io.BytesIO(base64.b64decode(piece))) for piece in data.split(",")]
            assert torch.equal(torch.stack([pil_to_tensor(frame) for frame in sent]), video.frames)
        times = body["mm_processor_kwargs"]["videos_kwargs"]["video_metadata"]
        assert [(one["fps"], one["frames_indices"]) for one in times] == [(3.0, [0, 2, 3, 5])] * len(parts)
        assert body["mm_processor_kwargs"]["size"] == dict(processor.image_processor.size)
    names = [part["uuid"] for _, body in server.bodies for part in parts_of(body)]
    assert len(server.bodies) == 3 and len(set(names)) == len(names) == 4
    sampler._tokens_per_second = 99.0
    responses, reasons = sampler(prompts, images, videos=[[], [clip]])
    assert responses[1] == [] and "vLLM would put the text after it elsewhere" in reasons[1][0]


def test_a_first_prompt_of_another_length_stops_before_the_others_are_asked(start, processor):
    server = start(lambda path, body: completion(body, 7))
    with pytest.raises(ValueError, match="row a has 7 tokens at http.* and 22 in training and scoring"):
        ServerSampler(server.url, "policy", processor, FEW)(["six"] * 5, [[]] * 5, 1, ["row a"] * 5)
    assert len(server.bodies) == 1


def test_a_server_that_hangs_or_is_gone_is_waited_for_and_no_longer(start):
    hangs = start(lambda path, body: (time.sleep(0.5), (200, {}))[1])
    with pytest.raises(ConnectionError, match="row a: http.* gave no answer for 1 seconds; at last: Request timed out"):
        ServerClient(hangs.url, 1, timeout=0.05, patience=1).post("row a", "/v1/chat/completions", {})
    with pytest.raises(ConnectionError, match="127.0.0.1:9/v1 does not answer .* Is `vllm serve` running there?"):
        ServerClient("http://127.0.0.1:9/v1", 1)


def test_requests_go_to_whichever_server_has_room(start):
    slow = start(lambda path, body: (time.sleep(0.4), (200, {}))[1])
    fast = start(lambda path, body: (200, {}))
    client = ServerClient([slow.url, fast.url], 1)
    with client.asking() as ask:
        results([ask(client.post, f"row {i}", "/classify", {}) for i in range(12)])
    assert len(slow.bodies) + len(fast.bodies) == 12 and len(slow.bodies) <= 2
    with pytest.raises(ValueError, match="does not say how many tokens its model takes"):
        ServerClient(start(limit=None).url, 1)
    with pytest.raises(ValueError, match="All servers of a run have to serve the same model alike"):
        ServerClient([slow.url, start(limit=99).url], 1)


def test_an_address_as_a_server_prints_it_is_taken(start):
    url = start().url
    assert url.endswith("/v1")
    for given in (url, f"{url}/", url.removesuffix("/v1"), f"{url.removesuffix('/v1')}/"):
        assert ServerClient(given, 1).urls == [url]
    for given in ("localhost:8000", "127.0.0.1:8000/v1", "served"):
        with pytest.raises(ValueError, match=f"`server_url: {given}` is no address of a server. Write it like http:"):
            ServerClient(given, 1)


def test_another_name_of_the_policy_is_refused(start, processor):
    with pytest.raises(ValueError, match="serves policy, and `model_name_or_path` is other"):
        ServerSampler(start().url, "other", processor, FEW)


@pytest.fixture
def exported(reward_model, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    probes = Probes.measured_by(RewardScorer(reward_model, processor), "float32")
    probes.save(tmp_path)
    return str(tmp_path), probes.probes


def test_the_first_response_to_a_prompt_goes_ahead_of_the_others(start, exported):
    path, probes = exported
    known = {json.dumps(probe["messages"]): probe for probe in probes}

    def script(route, body):
        assert route == "/classify" and body["add_generation_prompt"] is False
        probe = known.get(json.dumps(body["messages"]))
        score, tokens = (probe["score"], probe["prompt_tokens"]) if probe else (1.0, ANSWERED_TOKENS)
        return 200, {"data": [{"probs": [score]}], "usage": {"prompt_tokens": tokens}}

    server = start(script)
    scorer = ServerScorer(server.url, path)
    assert scorer.max_length == 512
    assert scorer.score_candidates([{"prompt": "six", "images": [], "responses": ["a", "b", "", "a", "c"]}]) == [
        [1, 1, None, 1, 1]
    ]
    asked = [body["messages"][-1]["content"][0]["text"] for _, body in server.bodies[2:]]
    assert asked[0] == "a" and sorted(asked) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="completion 0 has 25 tokens at http.* and 27 by the processor of the export"):
        scorer(["six"], ["a+b"])


def test_the_likely_reason_is_named(exported):
    probes = Probes.load(exported[0])
    tokens = [probe["prompt_tokens"] for probe in probes.probes]
    for right in (0.05, 4.0):
        for probe in probes.probes:
            probe["score"] = right
        for score, reason in (
            (0.0, "head is lost"),
            (right + 3, "head is lost"),
            (1 / (1 + math.exp(-right)), "sigmoid"),
            (right + 0.02 * max(1, right), "another dtype"),
            (math.nan, "another dtype"),
        ):
            with pytest.raises(ValueError, match=f"http://server gives the text probe .*{reason}"):
                probes.check_server([(tokens[0], score), (tokens[1], right)], "http://server")
    probes.check_server([(n, right + 1e-4) for n in tokens], "http://server")
    with pytest.raises(ValueError, match="the image probe as 9 tokens.* pixel budget is another"):
        probes.check_server([(tokens[0], right), (9, right)], "http://server")


def test_a_score_that_is_no_number_names_the_lost_head(start, exported):
    said = {"error": {"message": "Out of range float values are not JSON compliant"}}  # vLLM 0.30's answer
    with pytest.raises(ValueError, match="the text probe: the server's score is no number: its head is lost"):
        ServerScorer(start(lambda path, body: (400, said)).url, exported[0])


def test_without_vllm_the_error_says_what_to_install(monkeypatch, processor):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="vl-reward\\[vllm\\]"):
        VLLMSampler("policy", processor, SamplingParameters())
