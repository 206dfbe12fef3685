"""A recipe copied into an empty folder by the commands of its page, and launched there as if on two nodes."""

import json
import math
import socket
from concurrent.futures import ThreadPoolExecutor

from datasets import load_from_disk
from launches import ROOT
from test_docs import commands_of, run


LAUNCH = {
    "accelerate_configs/deepspeed_zero3.yaml": str(ROOT / "accelerate_configs/cpu_2_processes.yaml"),
    "--num_processes 16": "--num_processes 2",
    "node-0": "127.0.0.1",
    "recipes/mpo.py --config recipes/configs/qwen2_5_vl_7b/mpo.yaml --gradient_accumulation_steps 16": (
        "train_judge.py --use_cpu true --max_steps 2 --per_device_train_batch_size 4 --output_dir nodes"
    ),
}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def state_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())


def test_a_copied_recipe_trains_alone_and_on_two_nodes(tmp_path):
    run(commands_of("docs/copying_a_recipe.md"), tmp_path, RECIPES=str(ROOT / "recipes"))
    assert {path.name for path in tmp_path.iterdir()} == {"train_judge.py", "train_judge.yaml", "outputs"}
    one = state_of(tmp_path / "outputs/tiny/reward_stage1")
    assert one["global_step"] == 2 and one["log_history"][-1]["eval_n_pairs"] > 0

    launch = commands_of("docs/several_nodes.md").split("accelerate launch")[1]
    for text, other in (LAUNCH | {"29500": free_port()}).items():
        assert text in launch
        launch = launch.replace(text, other)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda node: run(f"accelerate launch {launch}", tmp_path, MACHINE=node), "01"))
    two = state_of(tmp_path / "nodes")
    pairs = load_from_disk(tmp_path / "outputs/tiny/preferences")["train"]
    rows = sum(len(images) > 0 for images in pairs["images"])
    # Each node has other rows: an epoch has as many steps as one process would take with batches of 8.
    assert two["global_step"] == 2 and two["epoch"] == 2 / math.ceil(rows / 8)
    assert two["log_history"][-1]["eval_n_pairs"] == one["log_history"][-1]["eval_n_pairs"]
