"""The recipes with a real vLLM: sampling offline and from a server, labelling, evaluation and GRPO with a served scorer."""

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
    command = [*launcher, str(ROOT / f"recipes/{recipe}.py"), "--config", str(ROOT / f"recipes/configs/tiny/{recipe}.yaml")]
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
    rows = [*prompt_rows(compose("test", 0), 40), *prompt_rows(compose_text(0), 8)]
    Dataset.from_list(as_png(rows), features=PROMPT_FEATURES).save_to_disk(path)
    return path


@pytest.fixture(scope="module")
def candidates(prompts, trained_path, tmp_path_factory):
    """Samples of vLLM's offline engine."""
    output = tmp_path_factory.mktemp("sampled")
    given = ["--model_name_or_path", trained_path, "--dataset_name", prompts, "--output_dir", output]
    run("sample_responses", *given, "--engine", "vllm", "--engine_kwargs", json.dumps(ENGINE), "--num_generations", 4)
    return output / "candidates"
