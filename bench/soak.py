"""
A long training with stops: stage 2 of the embedded world for 2,000 steps, stopped by SIGTERM and resumed three times,
with the memory of its process over time.

python bench/soak.py --output_dir docs/soak      # a quarter of an hour

Memory is flat if the last tenth of a run between two stops holds no more than its first tenth after warming up.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from launches import ENVIRONMENT, ROOT


WARM_UP = 0.25  # of a run: imports, the first batches, and the allocator's pools
LAST_SAMPLES = 20  # evaluation and saving
LARGEST_GROWTH = 0.02  # of the memory at the beginning


def resident_mib(process: psutil.Process) -> float:
    """The memory of a process and of the workers that load its data."""
    return sum(part.memory_info().rss for part in [process, *process.children(recursive=True)]) / 2**20


def run(command: list[str], folder: Path, stop_at: Path | None) -> tuple[int, list[float]]:
    """Exit code and memory in MiB, each half second, of a run that is sent SIGTERM once `stop_at` exists."""
    with open(folder / "log", "a") as log:
        running = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)
    process, memory, told = psutil.Process(running.pid), [], False
    while running.poll() is None:
        try:
            memory.append(resident_mib(process))
        except psutil.NoSuchProcess:
            pass  # a worker that ended in between
        if stop_at is not None and stop_at.exists() and not told:
            running.send_signal(signal.SIGTERM)
            told = True
        time.sleep(0.5)
    return running.returncode, memory


def main(steps: int, output_dir: Path):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = ["--n_questions", "600", "--n_policy_questions", "20", "--n_text_questions", "200", "--n_test", "40"]
        sizes += ["--n_prompts", "10", "--n_test_prompts", "10"]
        subprocess.run([sys.executable, "-m", "vl_reward.tiny", *sizes], cwd=folder, env=ENVIRONMENT, check=True)
        command = [sys.executable, str(ROOT / "recipes/reward_stage2.py"), "--model_name_or_path", "outputs/tiny/base"]
        command += ["--max_steps", str(steps), "--save_strategy", "steps", "--save_steps", str(steps // 40)]
        command += ["--save_total_limit", "2", "--per_device_train_batch_size", "32", "--output_dir", "out"]
        command += ["--resume_from_checkpoint", "true"]
        runs, start = [], time.monotonic()
        for quarter in (1, 2, 3, 4):
            marker = folder / f"out/checkpoint-{steps * quarter // 4}/complete.json" if quarter < 4 else None
            code, memory = run(command, folder, marker)
            assert code == (0 if quarter == 4 else 128 + signal.SIGTERM), (folder / "log").read_text()[-3000:]
            warm = memory[int(WARM_UP * len(memory)) : -LAST_SAMPLES]
            assert len(warm) >= 20, f"the run took {len(memory) / 2:.0f} s: take more steps"
            tenth = len(warm) // 10
            first, last = statistics.median(warm[:tenth]), statistics.median(warm[-tenth:])
            runs.append({"first_mib": round(first), "last_mib": round(last), "seconds": len(memory) / 2})
            print(f"run {quarter}: {first:,.0f} MiB at its beginning, {last:,.0f} MiB at its end", flush=True)
        state = json.loads((folder / f"out/checkpoint-{steps}/trainer_state.json").read_text())
    result = {"steps": state["global_step"], "resumes": 3, "seconds": round(time.monotonic() - start), "runs": runs}
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    growth = max(run["last_mib"] / run["first_mib"] - 1 for run in runs)
    print(f"{state['global_step']:,} steps; memory grew by at most {growth:.1%} in a run")
    if growth > LARGEST_GROWTH:
        raise SystemExit(f"Memory grew by {growth:.1%}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/soak"))
    main(**vars(parser.parse_args()))
