"""How a recipe is launched here: alone, or on two processes as each file of `accelerate_configs` says."""

import json
import os
import sys
from pathlib import Path

import yaml


ROOT = Path(__file__).parent.parent
# Configurations with two processes on a CPU, by their name in a table.
CONFIGS = {
    "DDP": "cpu_2_processes",
    "ZeRO-2": "deepspeed_zero2",
    "ZeRO-3": "deepspeed_zero3",
    "FSDP2": "fsdp2",
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}
ENVIRONMENT["MKL_CBWR"] = "AUTO"  # else the alignment of memory decides the last bit of a matrix product


def launcher(config: str, folder: Path) -> list[str]:
    """
    `accelerate launch` with two processes on the CPU, by a file of `accelerate_configs`. A script and its arguments
    come after it.

    ZeRO-3 keeps parameters of less than 100,000 elements whole by default, nearly all of the tiny model's. With a
    threshold of 0 they are sharded as those of 7B are.
    """
    settings = {"num_processes": 2, "mixed_precision": "no", "use_cpu": config != "fsdp2"}
    return launch(config, folder, settings) + ([str(ROOT / "bench/fsdp_on_cpu.py")] if config == "fsdp2" else [])


def gpu_launcher(config: str, folder: Path, bf16: bool) -> list[str]:
    """`accelerate launch` with one process on a GPU, likewise."""
    return launch(config, folder, {"num_processes": 1, "mixed_precision": "bf16" if bf16 else "no"})


def launch(config: str, folder: Path, changed: dict) -> list[str]:
    """`accelerate launch` by a file of `accelerate_configs` with changes, kept in the folder."""
    settings = yaml.safe_load((ROOT / f"accelerate_configs/{config}.yaml").read_text()) | changed
    folder.mkdir(parents=True, exist_ok=True)
    if config == "deepspeed_zero3":
        zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
        auto = dict.fromkeys(
            ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"
        )
        bf16 = {
            "bf16": {"enabled": settings.pop("mixed_precision") == "bf16"}
        }  # accelerate wants all of it in the file
        (folder / "zero3.json").write_text(json.dumps({**auto, **bf16, "zero_optimization": zero}))
        settings["deepspeed_config"] = {"deepspeed_config_file": str(folder / "zero3.json"), "zero3_init_flag": True}
    (folder / f"{config}.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / f"{config}.yaml")]
    return command + ["--main_process_port", "0"]
