"""Checkpoints that count only once they are whole, and trainings that end the same however often they are killed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from test_recipes import ENVIRONMENT
from trl import RewardConfig

from vl_reward import Qwen2_5_VLForSequenceClassification, VisionRewardTrainer
from vl_reward.tiny.preferences import PREFERENCE_FEATURES, as_png
from vl_reward.training.complete_checkpoint import newest_complete


# Imports once. A training is forked from it, on one process or two.
TRAIN = """
import json, os, random, signal, socket, sys, time
from datasets import load_from_disk
from tqdm.std import TqdmDefaultWriteLock
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, TrainerCallback, set_seed
from trl import DPOConfig, RewardConfig
from vl_reward import MPOTrainer, Qwen2_5_VLForSequenceClassification, VisionRewardTrainer

TqdmDefaultWriteLock.mp_lock = None  # see conftest.py
kind, processes, model, data, out = sys.argv[1:]
settings = {"max_steps": 40, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "bf16": False}
settings |= {"per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none", "gradient_checkpointing": False}
settings |= {"learning_rate": 1e-3, "logging_steps": 1, "disable_tqdm": True, "seed": 3}


class Slowly(TrainerCallback):
    def note(self, event, step):
        with open(out + "/steps", "a") as file:
            print(event, step, file=file)

    def on_train_begin(self, args, state, control, **kwargs):
        if args.process_index == 0:
            self.note("from", state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if args.process_index == 0:
            self.note("after", state.global_step)
        time.sleep(0.15)


def train(folder, slowly=False):
    set_seed(0)
    processor = AutoProcessor.from_pretrained(model)
    shared = {"processing_class": processor, "train_dataset": load_from_disk(data)}
    if kind == "reward":
        policy = Qwen2_5_VLForSequenceClassification.from_pretrained(model, dtype="float32")
        trainer = VisionRewardTrainer(policy, RewardConfig(folder, max_length=512, **settings), **shared)
    else:
        models = [Qwen2_5_VLForConditionalGeneration.from_pretrained(model, dtype="float32") for _ in range(2)]
        mixture = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
        trainer = MPOTrainer(*models, DPOConfig(folder, max_length=512, **mixture, **settings), **shared)
    if slowly:
        trainer.add_callback(Slowly())
        save = trainer._save_optimizer_and_scheduler
        trainer._save_optimizer_and_scheduler = lambda folder: time.sleep(0.2) or save(folder)
    trainer.train(resume_from_checkpoint="true")
    trainer.save_model(folder + "/final")
    trainer.accelerator.wait_for_everyone()


def fork(*arguments, **settings):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in map(str, range(int(processes))):
        if (child := os.fork()) == 0:
            if processes != "1":
                os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
                os.environ |= {"WORLD_SIZE": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
            train(*arguments, **settings)
            os._exit(0)
        children.append(child)
    return children


def status(children):
    return [os.waitpid(child, 0)[1] for child in children]
"""

# Each attempt is killed a little later. Steps and saving take 10 seconds at least, an attempt has 1: ten kills or more
# meet work half done on any machine.
KILLS = """
rng, killed = random.Random(0), 0
for attempt in range(12):
    children = fork(out + "/killed", slowly=True)
    time.sleep(rng.uniform(0.3, 1.0) + 0.3 * (processes == "2"))  # two have to find each other first
    rng.shuffle(children)
    for child in children:  # the second one dies as a launcher kills it, a little later
        os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    killed += any(map(os.WIFSIGNALED, status(children)))
    if os.path.exists(out + "/killed/final"):
        break
print("killed", killed)
for name in ("killed", "clean"):
    assert status(fork(f"{out}/{name}", slowly=name == "killed")) == [0] * int(processes)
"""

# One process of a training is asked to stop after its third step or a little later.
STOPS = """
children = fork(out + "/killed", slowly=True)
while not os.path.exists(out + "/steps") or "after 3" not in open(out + "/steps").read():
    time.sleep(0.01)
os.kill(children[-1], signal.SIGTERM)
print("stopped with", *map(os.waitstatus_to_exitcode, status(children)))
for name in ("killed", "clean"):
    assert status(fork(f"{out}/{name}", slowly=name == "killed")) == [0] * int(processes)
"""


def run(script, *arguments):
    process = subprocess.run(
        [sys.executable, "-c", TRAIN + script, *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert process.returncode == 0, process.stdout[-1000:] + process.stderr[-3000:]
    return process


def check_equal_in_the_end(folder):
    killed, clean = (load_file(folder / name / "final/model.safetensors") for name in ("killed", "clean"))
    assert killed.keys() == clean.keys() and all(killed[name].equal(clean[name]) for name in clean)


def starts_and_steps(folder):
    return [(event, int(step)) for event, step in map(str.split, (folder / "steps").read_text().splitlines())]


@pytest.fixture(scope="module")
def data(image_pairs, text_pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    Dataset.from_list(as_png(image_pairs[:12] + text_pairs[:4]), PREFERENCE_FEATURES).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("kind", ["reward", "mpo"])
def test_a_training_killed_at_random_moments_ends_with_the_weights_of_one_that_was_not(
    kind, processes, policy_path, data, tmp_path
):
    process = run(KILLS, kind, processes, policy_path, data, tmp_path)
    assert int(process.stdout.split("killed ")[1].split()[0]) >= 10
    check_equal_in_the_end(tmp_path)
    assert len(list((tmp_path / "killed").glob("checkpoint-*"))) == 2
    reached = 0
    for event, step in starts_and_steps(tmp_path):
        assert event == "after" or reached - step <= 2, "more than `save_steps` of work was lost"
        reached = step
    assert reached == 40


@pytest.mark.parametrize("processes", ["1", "2"])
def test_sigterm_to_one_process_saves_and_ends_all(processes, policy_path, data, tmp_path):
    process = run(STOPS, "reward", processes, policy_path, data, tmp_path)
    assert "stopped with " + " ".join(["143"] * int(processes)) + "\n" in process.stdout
    assert "training ended after step" in process.stderr and "--resume_from_checkpoint true" in process.stderr
    (_, start), *_ = [entry for entry in starts_and_steps(tmp_path) if entry[0] == "from"][1:]
    steps = [step for _, step in starts_and_steps(tmp_path)]
    assert 3 <= start < 40 and steps.count(start) == 2 and steps.count(start + 1) == 1, "a step was lost"
    check_equal_in_the_end(tmp_path)


@pytest.fixture
def make_trainer(policy_path, processor, data, tmp_path):
    def make(**changes):
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4}
        settings |= {"bf16": False, "use_cpu": True, "report_to": "none", "max_length": 512, "save_total_limit": 2}
        model = Qwen2_5_VLForSequenceClassification.from_pretrained(policy_path, dtype="float32")
        args = RewardConfig(str(tmp_path / "out"), **settings | changes)
        dataset = Dataset.load_from_disk(data)
        return VisionRewardTrainer(model, args, processing_class=processor, train_dataset=dataset)

    return make


def names(folder):
    return sorted(path.name for path in folder.glob("*checkpoint-*"))


def test_a_checkpoint_without_its_marker_or_with_a_torn_file_does_not_count(make_trainer, tmp_path, caplog):
    make_trainer().train()
    out = tmp_path / "out"
    marker = json.loads((out / "checkpoint-4/complete.json").read_text())
    assert marker["files"]["model.safetensors"] == (out / "checkpoint-4/model.safetensors").stat().st_size
    assert {"optimizer.pt", "trainer_state.json", "rng_state.pth", "scheduler.pt"} <= marker["files"].keys()
    assert names(out) == ["checkpoint-3", "checkpoint-4"]
    shutil.copytree(out / "checkpoint-4", out / "checkpoint-5")
    (out / "checkpoint-5/complete.json").unlink()
    torn = out / "checkpoint-4/optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-1])
    trainer = make_trainer(max_steps=6)
    trainer.train(resume_from_checkpoint="true")
    assert names(out) == ["broken-1-checkpoint-4", "broken-1-checkpoint-5", "checkpoint-5", "checkpoint-6"]
    assert "such as optimizer.pt. It is moved aside" in caplog.text and "checkpoint-3" in caplog.text
    with pytest.raises(ValueError, match="has no complete.json: it was being written when the run was stopped"):
        make_trainer().train(resume_from_checkpoint=str(out / "broken-1-checkpoint-5"))


def test_checkpoints_of_one_step_are_moved_aside_as_often_as_they_are_broken(tmp_path):
    for _ in range(2):
        (tmp_path / "checkpoint-2").mkdir()
        (tmp_path / "checkpoint-2/model.safetensors").write_bytes(b"half")
        assert newest_complete(str(tmp_path), move_aside=True) is None
    assert names(tmp_path) == ["broken-1-checkpoint-2", "broken-2-checkpoint-2"]


def test_without_a_checkpoint_training_begins_and_says_so(make_trainer, caplog):
    trainer = make_trainer(max_steps=1)
    trainer.train(resume_from_checkpoint="true")
    assert "goes on from the beginning, for there is no whole checkpoint" in caplog.text
    assert trainer.state.global_step == 1


def test_a_resumed_run_logs_what_one_that_was_not_stopped_does(make_trainer, tmp_path):
    whole, resumed = make_trainer(logging_steps=1), make_trainer(logging_steps=1)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-3"))
    last, again = (trainer.state.log_history[-2] for trainer in (whole, resumed))
    assert last["step"] == 4 and last["num_tokens"] > 4 * 100 and again == last


def test_a_run_with_other_batches_or_rows_is_not_resumed(make_trainer, tmp_path):
    make_trainer(max_steps=1).train()
    checkpoint = str(tmp_path / "out/checkpoint-1")
    with pytest.raises(ValueError, match="per_device_train_batch_size was 4 and is 2. Rows would be left out"):
        make_trainer(per_device_train_batch_size=2).train(resume_from_checkpoint=checkpoint)
    fewer = make_trainer()
    fewer.train_dataset = fewer.train_dataset.select(range(15))
    with pytest.raises(ValueError, match="rows was 16 and is 15, ids was [0-9a-f]{16} and is [0-9a-f]{16}"):
        fewer.train(resume_from_checkpoint=checkpoint)


def test_a_disk_that_fills_up_while_saving_keeps_the_checkpoint_before(make_trainer, tmp_path):
    trainer = make_trainer(save_total_limit=1)
    save = trainer._save_optimizer_and_scheduler

    def full(output_dir):
        if Path(output_dir).name == "checkpoint-3":
            raise OSError(28, "No space left on device")
        save(output_dir)

    trainer._save_optimizer_and_scheduler = full
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert names(tmp_path / "out") == ["checkpoint-2", "checkpoint-3"]
    resumed = make_trainer(save_total_limit=1)
    resumed.train(resume_from_checkpoint="true")
    assert resumed.state.global_step == 4 and names(tmp_path / "out") == ["broken-1-checkpoint-3", "checkpoint-4"]
