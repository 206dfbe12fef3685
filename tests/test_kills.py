"""
What is kept in the resumable store, killed fifty times at random moments on one, two and three processes in turn: the
recipes, and log-probabilities of the reference, write the bytes of one clean run.
"""

import subprocess
import sys

import pytest
from datasets import DatasetDict, load_from_disk
from test_configs import ROOT
from test_recipes import ENVIRONMENT


# Imports once. Each attempt forks as many processes as a launcher would start, and kills them a little later.
KILLS = """
import importlib.util, os, random, signal, socket, sys, time, traceback
from pathlib import Path
from tqdm.std import TqdmDefaultWriteLock

TqdmDefaultWriteLock.mp_lock = None  # see conftest.py
spec = importlib.util.spec_from_file_location("work", sys.argv[1])
work = importlib.util.module_from_spec(spec)
sys.modules["work"] = work
spec.loader.exec_module(work)
from vl_reward.inference.resumable_store import ResumableStore

# Four rows to a shard, and 0.15 seconds for each: 6 seconds of work, and an attempt's processes have 0.5 at most. So 12
# of them or more are killed before all is done, on any machine.
init, write = ResumableStore.__init__, ResumableStore.write
ResumableStore.__init__ = lambda self, *args, **options: init(self, *args[:3], 4, **options)
ResumableStore.write = lambda self, number, **columns: time.sleep(0.15) or write(self, number, **columns)
out, arguments = Path(sys.argv[2]), sys.argv[3:]


def run(output_dir):
    types = [getattr(work, name) for name in os.environ["TYPES"].split(",")]
    command = [*arguments, "--output_dir", str(output_dir)]
    work.main(*work.RecipeParser(types, sys.argv[1], ()).parse_args_and_config(command))


def start(folder, rank=0, world=1, port=0):
    if child := os.fork():
        return child
    try:
        if world > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        run(folder)
    except BaseException:
        traceback.print_exc()
    os._exit(0)


def wait(children):
    return sum(os.WIFSIGNALED(os.waitpid(child, 0)[1]) for child in children)


rng, killed = random.Random(0), 0
for attempt in range(50):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = 1 + attempt % 3
    children = [start(out / "killed", rank, world, port) for rank in range(world)]
    # A machine that does much else needs longer for its first shard.
    longest = 0.5 if any((out / "killed").rglob("*-*.jsonl")) else 0.5 + 0.1 * attempt
    time.sleep(rng.uniform(0.05, longest))
    for child in children:
        os.kill(child, signal.SIGKILL)
    killed += wait(children)
print("killed", killed, "kept", len(list((out / "killed").rglob("*-*.jsonl"))), flush=True)
run(out / "killed")
ResumableStore.write = write
run(out / "clean")
"""
# The reference's log-probabilities, with a recipe's entry.
REFERENCE = """
import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Image, List, load_from_disk
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from vl_reward import RecipeParser
from vl_reward.data.collators import DataCollatorForMPO
from vl_reward.inference.fingerprints import model_fingerprint
from vl_reward.models.repeated_visuals import repeated
from vl_reward.training.reference_log_probs import ReferenceLogProbs


@dataclass
class Arguments:
    model: str
    dataset: str
    output_dir: str


def main(args):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.model, dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(args.model)
    pairs = load_from_disk(args.dataset).cast_column("images", List(Image(decode=False)))

    @torch.no_grad()
    def compute(batch):
        mask = batch.pop("completion_mask")[:, 1:]
        batch.pop("id")
        logps = model(**repeated(batch)).logits[:, :-1].log_softmax(-1)
        logps = logps.gather(2, batch["input_ids"][:, 1:, None])[:, :, 0]
        return (logps * mask).sum(1).chunk(2)

    accelerator, folder = Accelerator(cpu=True), Path(args.output_dir)
    add = ReferenceLogProbs(folder / "ref_log_probs", model_fingerprint(model, processor), accelerator)
    done = add(pairs, DataCollatorForMPO(processor), compute, batch_size=1)
    if accelerator.is_main_process:
        rows = done.select_columns(["id", "ref_chosen_logps", "ref_rejected_logps"])
        (folder / "log_probs.json").write_text(json.dumps(rows[:]))
"""


@pytest.fixture(scope="module")
def worlds(labelling_world, policy_path, tmp_path_factory):
    """The candidates as prompts to sample on, and as pairs with their images to judge and to score."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "reference.py").write_text(REFERENCE)
    candidates = load_from_disk(labelling_world / "candidates")
    prompts = candidates.select_columns(["id", "prompt", "images", "answer"])
    DatasetDict({"train": prompts}).save_to_disk(folder / "prompts")
    pairs = candidates.select_columns(["id", "prompt", "images"])
    for number, side in enumerate(("chosen", "rejected")):
        responses = [[{"role": "assistant", "content": row[number]}] for row in candidates["responses"]]
        pairs = pairs.add_column(side, responses)
    pairs.save_to_disk(folder / "pairs")
    DatasetDict({"test": pairs}).save_to_disk(folder / "preferences")
    return folder, labelling_world, policy_path


def results(folder):
    """The bytes of all that a recipe writes once its store is full, but for what names the folder."""
    # `datasets` writes a random fingerprint, and what was labelled is known by hashes of it.
    skipped = ("state.json", "dataset_info.json", ".labels_written.json")
    return {
        path.relative_to(folder): path.read_text("latin-1").replace(str(folder), "")
        for path in folder.rglob("*.*")
        if path.is_file() and path.name not in skipped and "cache" not in path.parts
    }


@pytest.mark.parametrize(
    "name", ["sample_responses", "label_preferences", "evaluate_judge", "evaluate_reward", "log_probs"]
)
def test_fifty_kills_give_the_bytes_of_one_clean_run(worlds, name, tmp_path):
    folder, labelling, policy = worlds
    paths = {"model_name_or_path": policy if name in ("sample_responses", "evaluate_judge") else labelling / "model"}
    settings = {
        "sample_responses": {"dataset_name": folder / "prompts", "max_new_tokens": 12},
        "label_preferences": {"dataset_name": labelling / "candidates", "min_score_margin": 0, "max_pairs": 2},
        "evaluate_judge": {"dataset_name": folder / "preferences", "max_new_tokens": 6},
        "evaluate_reward": {"dataset_name": folder / "preferences"},
        "log_probs": {"model": policy, "dataset": folder / "pairs"},
    }[name]
    types = {
        "sample_responses": "SampleArguments,SamplingEngineArguments,SamplingParameters,VisionModelConfig",
        "label_preferences": "LabelArguments,RewardModelConfig",
        "evaluate_judge": "JudgeArguments,SamplingParameters,VisionModelConfig",
        "evaluate_reward": "RewardEvaluationArguments,RewardModelConfig",
        "log_probs": "Arguments",
    }[name]
    work, config = folder / "reference.py", []
    if name != "log_probs":
        work, settings = ROOT / f"recipes/{name}.py", settings | paths
        config = ["--config", str(ROOT / f"recipes/configs/tiny/{name}.yaml")]
    else:
        (tmp_path / "empty.yaml").write_text("{}")
        config = ["--config", str(tmp_path / "empty.yaml")]
    arguments = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    process = subprocess.run(
        [sys.executable, "-c", KILLS, str(work), str(tmp_path), *config, *arguments],
        cwd=tmp_path,
        env=ENVIRONMENT | {"TYPES": types},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-3000:]
    _, killed, _, kept = next(line for line in process.stdout.splitlines() if line.startswith("killed ")).split()
    assert int(killed) >= 12, process.stderr[-3000:]
    assert int(kept) > 0  # the later ones may find all done
    clean = results(tmp_path / "clean")
    assert results(tmp_path / "killed") == clean
    shards = [path for path in clean if path.suffix == ".jsonl" and path.name[:6].isdigit()]
    assert len(shards) > 2
