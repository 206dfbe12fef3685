"""A real vLLM on the CPU: engines in this process, and servers in others."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from servers import CHECKPOINTS, POOLING, ROOT, Server
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from vl_reward import Qwen2_5_VLForSequenceClassification


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """Starts a server of a folder; all are killed at the end of the session."""
    started, logs = [], tmp_path_factory.mktemp("logs")

    def start(folder, *flags):
        started.append(Server(folder, logs / f"{len(started)}.log", flags).start())
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="session")
def trained_path(tmp_path_factory, processor):
    """The policy of the embedded world, which has learned its answers, with its processor."""
    path = tmp_path_factory.mktemp("trained")
    Qwen2_5_VLForConditionalGeneration.from_pretrained(CHECKPOINTS / "policy", dtype="float32").save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def reward_path(trained_path, tmp_path_factory):
    """A reward model of this project on that policy, with a head that spreads its scores."""
    path = tmp_path_factory.mktemp("reward")
    model = Qwen2_5_VLForSequenceClassification.from_pretrained(trained_path, dtype="float32")
    # This seed's probes score 3.1 and 6.8: near 0, a lost head could be taken for another dtype.
    model.score.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
    model.save_pretrained(path)
    AutoProcessor.from_pretrained(trained_path).save_pretrained(path)
    return path


@pytest.fixture
def copied(tmp_path):
    """A copy of a folder, to be broken."""

    def copy(folder):
        return Path(shutil.copytree(folder, tmp_path / "copied"))

    return copy


@pytest.fixture(scope="session")
def exported(reward_path, tmp_path_factory):
    """What `recipes/export_reward.py` makes of the reward model, for vLLM."""
    folder = tmp_path_factory.mktemp("exported")
    recipe = [sys.executable, ROOT / "recipes/export_reward.py", "--model_name_or_path", reward_path]
    subprocess.run([*recipe, "--format", "vllm", "--output_dir", folder], check=True, cwd=folder)
    return folder


@pytest.fixture(scope="session")
def reward_server(serve, exported):
    return serve(exported, *POOLING).wait()
