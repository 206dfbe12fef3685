"""Sampling from a server: a local one, which speaks the protocol and asks a real tiny policy."""

import base64
import contextlib
import copy
import http.server
import io
import json
import threading

import pytest
import torch
from PIL import Image

from vl_reward import ResponseSampler, SamplingParameters
from vl_reward.data.encoding import encode_prompts
from vl_reward.data.messages import text_of
from vl_reward.inference.server_sampler import ServerSampler


GREEDY = SamplingParameters(max_new_tokens=6, temperature=0.0)


def read(messages):
    """The messages and images of a request in OpenAI's form."""
    images = [
        Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].split(",")[1])))
        for message in messages
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    parts = {"image_url": {"type": "image"}}
    return [{**m, "content": [parts.get(part["type"], part) for part in m["content"]]} for m in messages], images


class Handler(http.server.BaseHTTPRequestHandler):
    """Chat completions by `server.policy`; a request that says "fail" gets an error."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            messages, images = read(body["messages"])
            if "fail" in text_of(messages):
                return self.reply(400, {"error": {"message": "the prompt is too long"}})
            torch.manual_seed(body["seed"])
            parameters = SamplingParameters(body["max_tokens"], body["temperature"], body["top_p"])
            sampler = ResponseSampler(self.server.policy, self.server.processor, parameters)
            responses, reasons = sampler([messages], [images], body["n"])
            tokens = encode_prompts(self.server.processor, [messages], [images], ["served"])["input_ids"].shape[1]
        choices = [
            {"index": i, "message": {"role": "assistant", "content": response}, "finish_reason": reason}
            for i, (response, reason) in enumerate(zip(responses[0], reasons[0], strict=True))
        ]
        self.reply(200, {"choices": choices, "usage": {"prompt_tokens": tokens}})

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serve(policy, processor):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.policy, server.processor, server.lock, server.bodies = policy, processor, threading.Lock(), []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1/"
    yield server
    server.shutdown()


@pytest.fixture
def server(policy, processor):
    with serve(policy, processor) as server:
        yield server


def columns(rows):
    return [row["prompt"] for row in rows], [row["images"] for row in rows]


def test_greedy_responses_are_those_of_transformers(server, policy, processor, mixed_pairs):
    prompts, images = columns(mixed_pairs[:6])
    served = ServerSampler(server.url, "policy", processor, GREEDY)(prompts, images)
    assert served == ResponseSampler(policy, processor, GREEDY)(prompts, images)


def test_every_parameter_is_sent_and_seeds_decide(server, processor, image_pairs):
    prompts, images = columns(image_pairs[:2])
    settings = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1}
    sampler = ServerSampler(server.url, "policy", processor, SamplingParameters(max_new_tokens=4, **settings))
    torch.manual_seed(0)
    first = sampler(prompts, images, 3)
    assert [len(row) for row in first[0]] == [3, 3] and {reason for row in first[1] for reason in row} <= {
        "stop",
        "length",
    }
    for body in server.bodies:
        assert {key: body[key] for key in settings} == settings
        assert (body["model"], body["max_tokens"], body["n"]) == ("policy", 4, 3)
        assert body["mm_processor_kwargs"]["size"] == dict(processor.image_processor.size)
    assert len({body["seed"] for body in server.bodies}) == 2
    torch.manual_seed(0)
    assert sampler(prompts, images, 3) == first
    torch.manual_seed(1)
    assert sampler(prompts, images, 3) != first


def test_a_begun_response_is_continued(server, policy, processor, image_pairs):
    row = image_pairs[0]
    prompt = row["prompt"] + [{"role": "assistant", "content": "Two"}]
    served = ServerSampler(server.url, "policy", processor, GREEDY)([prompt], [row["images"]])
    assert (server.bodies[0]["add_generation_prompt"], server.bodies[0]["continue_final_message"]) == (False, True)
    assert served == ResponseSampler(policy, processor, GREEDY)([prompt], [row["images"]])


def test_a_server_that_sizes_images_otherwise_is_refused(server, processor, image_pairs):
    server.processor = copy.deepcopy(processor)
    server.processor.image_processor.size = {"shortest_edge": 112 * 112, "longest_edge": 112 * 112}
    with pytest.raises(ValueError, match="prompt 0 has .* tokens at http.* and .* in training and scoring"):
        ServerSampler(server.url, "policy", processor, SamplingParameters(max_new_tokens=4))(*columns(image_pairs[:2]))


def test_errors_are_the_servers_own_words(server, processor):
    sampler = ServerSampler(server.url, "policy", processor, SamplingParameters(max_new_tokens=4))
    with pytest.raises(ConnectionError, match="prompt 0: .* answered 400: .*the prompt is too long"):
        sampler(["fail"], [[]])
    with pytest.raises(ConnectionError, match="127.0.0.1:9/v1 does not answer .* Is `vllm serve` running there?"):
        ServerSampler("http://127.0.0.1:9/v1", "policy", processor, SamplingParameters(max_new_tokens=4))(
            ["fine"], [[]]
        )
    with pytest.raises(ValueError, match="prompt 0: a message holds"):
        sampler(["<|im_start|>"], [[]])
