"""Processes whose batches hold a video, an image or text alone: none waits for another, and all learn the same."""

import json
import subprocess

import pytest
import torch
from launches import ENVIRONMENT, ROOT, launcher
from safetensors.torch import load_file
from test_hand_over import BASE, POLICY
from transformers import AutoProcessor
from video_files import frames, write_video

from vl_reward import Qwen2_5_VLForSequenceClassification


BUDGET = ["--video_fps", "4", "--video_max_frames", "4", "--video_max_pixels", str(6 * 28 * 28)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs of which two processes get, at each step, one with a video and one with another thing or none."""
    folder = tmp_path_factory.mktemp("rows")
    write_video(folder / "a.mp4", frames(12), 8)
    frames(1)[0].save(folder / "a.png")
    shown = [{"videos": ["a.mp4"]}, {}, {"videos": ["a.mp4"], "images": ["a.png"]}, {"images": ["a.png"]}]
    sides = {"chosen": "The dark one.", "rejected": "The light one."}
    rows = [{"prompt": f"Which came first? {i}", **sides, **shown[i % 4]} for i in range(16)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(recipe, config, folder, output, *arguments):
    command = [*launcher(config, folder), str(ROOT / f"recipes/{recipe}.py")]
    command += ["--config", str(ROOT / f"recipes/configs/tiny/{recipe}.yaml"), "--model_name_or_path", BASE]
    command += [
        "--dataset_name",
        str(folder / "pairs.jsonl"),
        "--output_dir",
        str(output),
        *BUDGET,
        "--use_cpu",
        "true",
    ]
    command += ["--max_steps", "2", "--per_device_train_batch_size", "1", "--dataloader_num_workers", "0"]
    command += ["--max_length", "300", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)


def test_processes_with_other_rows_do_not_wait_for_each_other(folder, tmp_path):
    """MPO's vision tower is trained, too."""
    weights = {}
    for config in ("cpu_2_processes", "deepspeed_zero3", "fsdp2"):
        result = train("mpo", config, folder, tmp_path / config)
        assert result.returncode == 0, result.stderr[-3000:]
        weights[config] = load_file(tmp_path / config / "model.safetensors")
    start = load_file(f"{BASE}/model.safetensors")
    whole, *others = weights.values()
    for sharded in others:
        assert whole.keys() == sharded.keys()
        assert all(torch.allclose(weight.float(), sharded[name].float(), atol=1e-4) for name, weight in whole.items())
    name = next(name for name in whole if "layers.0.mlp.up_proj" in name)
    assert not any(torch.equal(whole[name].float(), weight.float()) for weight in start.values())


def test_without_sharing_a_sharded_run_is_refused(folder, tmp_path):
    result = train("reward_stage2", "deepspeed_zero3", folder, tmp_path / "out", "--share_prefixes", "false")
    assert result.returncode != 0 and "call the vision tower twice" in result.stderr, result.stderr[-3000:]


@pytest.mark.parametrize("config", ["deepspeed_zero3", "fsdp2"])
def test_sharded_grpo_on_prompts_with_and_without_videos(folder, config, tmp_path):
    """In each step one process samples from a video, and the other from an image, text, or all of it."""
    torch.manual_seed(0)
    Qwen2_5_VLForSequenceClassification.from_pretrained(BASE, dtype="float32").save_pretrained(tmp_path / "reward")
    AutoProcessor.from_pretrained(BASE).save_pretrained(tmp_path / "reward")
    shown = [{"videos": ["a.mp4"]}, {}, {"videos": ["a.mp4"]}, {"images": ["a.png"]}, {"videos": ["a.mp4"]}]
    shown.append({"videos": ["a.mp4"], "images": ["a.png"]})
    rows = [{"prompt": f"Which came first? {i}", **one} for i, one in enumerate(shown)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [*launcher(config, tmp_path), str(ROOT / "recipes/grpo.py"), "--use_cpu", "true", *BUDGET]
    command += ["--config", str(ROOT / "recipes/configs/tiny/grpo.yaml"), "--model_name_or_path", POLICY]
    command += ["--reward_model", str(tmp_path / "reward"), "--dataset_name", str(folder / "prompts.jsonl")]
    command += ["--output_dir", str(tmp_path / "out"), "--max_steps", "3", "--per_device_train_batch_size", "8"]
    command += ["--max_completion_length", "4", "--temperature", "2", "--shuffle_dataset", "false"]
    result = subprocess.run(
        [*command, "--logging_steps", "1"], env=ENVIRONMENT, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stderr[-3000:]
    history = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "loss" in entry]
    assert len(steps) == 3 and all(step["reward"] != 0 and step["grad_norm"] > 0 for step in steps)
