"""The recipes with a real vLLM: sampling, and labelling, evaluation and GRPO with a served reward model."""

import json
import os
import subprocess
import sys
import time

import pytest
from datasets import Dataset, load_from_disk
from servers import ENGINE, POOLING, ROOT

from vl_reward.tiny.digits import compose, compose_text
from vl_reward.tiny.preferences import PREFERENCE_FEATURES, PROMPT_FEATURES, as_png, corrupted_pairs, prompt_rows


pytestmark = pytest.mark.vllm


def start(recipe, *arguments, launcher=(sys.executable,)):
    config = ROOT / f"recipes/configs/tiny/{recipe}.yaml"
    command = [*launcher, str(ROOT / f"recipes/{recipe}.py"), "--config", str(config)]
    return subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )


def run(recipe, *arguments, **options):
    process = start(recipe, *arguments, **options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "prompts"
    rows = prompt_rows("test", 48, 0)
    Dataset.from_list(as_png(rows), features=PROMPT_FEATURES).save_to_disk(path)
    return path


@pytest.fixture(scope="module")
def candidates(prompts, trained_path, tmp_path_factory):
    """Samples of vLLM's offline engine."""
    output = tmp_path_factory.mktemp("sampled")
    given = ["--model_name_or_path", trained_path, "--dataset_name", prompts, "--output_dir", output]
    run("sample_responses", *given, "--engine", "vllm", "--engine_kwargs", json.dumps(ENGINE), "--num_generations", 4)
    return output / "candidates"


def test_all_engines_give_the_same_greedy_samples(serve, prompts, trained_path, tmp_path):
    server = serve(
        trained_path, "--served-model-name", str(trained_path), "--limit-mm-per-prompt", '{"image": 2}'
    ).wait()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launch += [str(ROOT / "accelerate_configs/cpu_2_processes.yaml")]
    engines = {
        "transformers": [],
        "server": ["--server_url", server.url],
        "vllm": ["--engine_kwargs", json.dumps(ENGINE)],
    }
    sampled = {}
    for engine, given in engines.items():
        launcher = launch if engine == "vllm" else [sys.executable]  # an engine in each of two processes
        given += ["--model_name_or_path", trained_path, "--dataset_name", prompts, "--output_dir", tmp_path / engine]
        given += ["--temperature", "0", "--num_generations", "1", "--shard_size", "7", "--engine", engine]
        run("sample_responses", *given, launcher=launcher)
        sampled[engine] = load_from_disk(tmp_path / engine / "candidates").remove_columns("images")[:]
    server.kill()
    assert sampled["vllm"] == sampled["transformers"] and sampled["server"] == sampled["transformers"]


def labelled(folder):
    """Pairs without their scores, and the raw scores."""
    pairs = load_from_disk(folder / "preferences").select_columns(["id", "chosen", "rejected"])[:]
    scores = [json.loads(line)["scores"] for line in open(folder / "scores.jsonl")]
    return pairs, [score for row in scores for score in row]


def test_a_server_labels_as_the_model_does_also_when_it_is_killed(candidates, reward_path, exported, serve, tmp_path):
    given = ["--dataset_name", candidates, "--min_score_margin", "0.01"]
    run("label_preferences", *given, "--model_name_or_path", reward_path, "--output_dir", tmp_path / "here")
    server = serve(exported, *POOLING).wait()
    served = [*given, "--model_name_or_path", exported, "--engine", "server", "--server_url", server.url]
    process = start("label_preferences", *served, "--requests_in_flight", "1", "--output_dir", tmp_path / "there")
    while process.poll() is None and not list((tmp_path / "there/scores").rglob("*.jsonl")):
        time.sleep(0.05)
    server.kill()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "there/scores").rglob("*.jsonl")}
    assert process.poll() is None and len(done) < 3, "it was done before the server was killed"
    server.start().wait()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]
    assert "It is asked again" in output
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())  # nothing twice
    (pairs, scores), (served_pairs, served_scores) = labelled(tmp_path / "here"), labelled(tmp_path / "there")
    assert served_scores == pytest.approx(scores, abs=1e-4)
    assert len(pairs["id"]) > 20
    different = sum(a != b for a, b in zip(pairs["chosen"], served_pairs["chosen"], strict=True))
    assert different == 0 and served_pairs == pairs
    server.kill()


def test_evaluation_and_grpo_take_a_served_scorer(
    reward_server, exported, reward_path, trained_path, prompts, tmp_path
):
    rows = [*corrupted_pairs(compose("test", 3), 12, 0), *corrupted_pairs(compose_text(3), 4, 0)]
    Dataset.from_list(as_png(rows), features=PREFERENCE_FEATURES).save_to_disk(tmp_path / "pairs")
    served = ["--engine", "server", "--server_url", reward_server.url]
    results = {}
    for name, given in (("here", [reward_path]), ("there", [exported, *served])):
        given = ["--dataset_name", tmp_path / "pairs", "--output_dir", tmp_path / name, "--model_name_or_path", *given]
        run("evaluate_reward", *given)
        lines = [json.loads(line) for line in open(tmp_path / name / "scores.jsonl")]
        results[name] = [score for line in lines for score in [*line["scores"], *line["blank_scores"]]]
    assert results["there"] == pytest.approx(results["here"], abs=1e-4)
    given = ["--model_name_or_path", trained_path, "--dataset_name", prompts, "--max_steps", "1"]
    given += ["--save_strategy", "steps", "--save_steps", "1", "--logging_steps", "1"]
    rewards = {}
    for name, model in (("here", [reward_path]), ("there", [exported, *served])):
        output = run("grpo", *given, "--output_dir", tmp_path / f"grpo_{name}", "--reward_model", *model)
        state = json.loads((tmp_path / f"grpo_{name}" / "checkpoint-1/trainer_state.json").read_text())
        rewards[name] = [entry["rewards/reward_model/mean"] for entry in state["log_history"] if "reward" in entry]
        assert "Policy saved" in output
    assert rewards["there"] == pytest.approx(rewards["here"], abs=1e-4) and len(rewards["here"]) == 1
