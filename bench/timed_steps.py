"""
Runs a training script and writes what each of its steps took. `bench/ms_swift.py` runs it in two environments, so it
needs transformers and nothing of this project.

python bench/timed_steps.py steps.json recipes/mpo.py --config ...           # a file
python bench/timed_steps.py steps.json swift.pipelines:rlhf_main ...         # or a function of a module
"""

import atexit
import ctypes
import importlib
import json
import runpy
import sys
import time
from pathlib import Path

from transformers import Trainer


def status(field: str) -> float:
    """MiB of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def record(taken: dict) -> None:
    """Wrap what every trainer calls for a step: forward passes, the reference's too, and a backward pass."""
    training_step = Trainer.training_step

    def timed(self, *args, **kwargs):
        if not taken["steps"]:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory that was freed and kept would be used again unseen
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            taken["before_mib"] = status("VmRSS")
        started = time.process_time()
        loss = training_step(self, *args, **kwargs)
        taken["steps"].append({"cpu_seconds": time.process_time() - started, "loss": loss.item()})
        taken["peak_mib"] = status("VmHWM") - taken["before_mib"]
        return loss

    Trainer.training_step = timed


if __name__ == "__main__":
    path, script, *sys.argv[1:] = sys.argv[1:]
    taken = {"steps": []}
    record(taken)
    atexit.register(lambda: Path(path).write_text(json.dumps(taken)))
    if script.endswith(".py"):
        sys.argv[0] = script
        runpy.run_path(script, run_name="__main__")
    else:
        module, name = script.split(":")
        getattr(importlib.import_module(module), name)()
