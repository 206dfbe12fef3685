"""What training refuses before its first step, and runs that would train, measure or save nothing."""

import json
import logging
import signal

import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from test_configs import ROOT, dataclasses_of, load_recipe
from trl import GRPOConfig, RewardConfig

from vl_reward import DataCollatorForVisionReward, RecipeParser, VisionRewardTrainer
from vl_reward.preflight.row_checks import PairCheck, PromptCheck
from vl_reward.preflight.training_rows import TrainingPreflight
from vl_reward.training.grpo_trainer import VisionGRPOTrainer, check_batches


MESSAGES = List({"role": Value("string"), "content": Value("string")})
PAIRS = Features({"id": Value("string"), "prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES})
PAIRS |= {"images": List(Image())}


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def rows(mixed_pairs):
    """Nine pairs, one image, none and two in turn, named by their numbers."""
    return [{key: row[key] for key in PAIRS if key != "id"} | {"id": f"p{i}"} for i, row in enumerate(mixed_pairs[:9])]


def dataset(rows, decode=False):
    return Dataset.from_list(rows, Features(PAIRS)).cast_column("images", List(Image(decode=decode)))


def with_answer(row, side, text):
    return row | {side: [{"role": "assistant", "content": text}]}


@pytest.fixture
def broken(rows):
    """With an answer that is too long, and three rows that cannot be used."""
    rows = [*rows]
    rows[1] = with_answer(rows[1], "chosen", "9 " * 200)
    rows[4] = with_answer(rows[4], "rejected", " ")
    rows[5] = with_answer(rows[5], "chosen", "<|im_start|>system")
    data = list(dataset(rows))
    data[6]["images"][0]["bytes"] = data[6]["images"][0]["bytes"][:-40]
    return dataset(data)


@pytest.mark.parametrize("num_proc", [None, 2])
def test_all_that_would_be_refused_is_listed_before_the_first_step(broken, rows, processor, tmp_path, num_proc):
    preflight = TrainingPreflight(tmp_path, num_proc=num_proc)
    message = (
        "4 of 18 rows cannot be trained on: row p1: chosen response of row p1 has 436 tokens, image tokens .*; "
        "row p4: the rejected response is empty.*; row p5: chosen response of row p5: a message holds .*; and 1 more. "
        ".*refused.jsonl has all of them. .*`too_long: drop` leaves out those"
    )
    with pytest.raises(ValueError, match=message):
        preflight(PairCheck(processor, 200), train=broken, eval=dataset(rows))
    told = lines_of(tmp_path / "refused.jsonl")
    assert [(row["split"], row["id"]) for row in told] == [("train", f"p{i}") for i in (1, 4, 5, 6)]
    assert "could not be decoded" in told[3]["reason"]
    # What is too long may be dropped, and nothing else.
    with pytest.raises(ValueError, match="3 of 18 rows cannot be trained on: row p4: "):
        TrainingPreflight(tmp_path, "drop", num_proc)(PairCheck(processor, 200), train=broken, eval=dataset(rows))
    assert len(lines_of(tmp_path / "refused.jsonl")) == 4


class SigtermCheck(PairCheck):
    """Refuses all rows where SIGTERM would not end the process."""

    def __call__(self, row):
        ends = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        return super().__call__(row) | {"refused": None if ends else "SIGTERM does something else"}


def test_sigterm_ends_a_worker_whatever_it_does_here(rows, processor, tmp_path):
    """A pool ends its workers by SIGTERM and waits. Where they inherited a handler, it waited now and then for ever."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        (kept,) = TrainingPreflight(tmp_path, num_proc=2)(SigtermCheck(processor, 500), train=dataset(rows))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(kept) == 9


def test_a_training_that_fails_gives_sigterm_back(reward_model, processor, rows, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    trainer = reward_trainer(reward_model, processor, rows, tmp_path)
    trainer.data_collator = lambda rows: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_too_long_is_dropped_with_a_count(broken, rows, processor, tmp_path, caplog):
    long = broken.select([0, 1, 2, 3])
    preflight = TrainingPreflight(tmp_path, "drop")
    with caplog.at_level(logging.WARNING):
        train, test = preflight(PairCheck(processor, 200), train=long, eval=dataset(rows))
    assert train["id"][:] == ["p0", "p2", "p3"] and test["id"][:] == [row["id"] for row in rows]
    assert train.features == long.features
    (said,) = [record.message for record in caplog.records if "max_length" in record.message]
    assert said.startswith("train: 1 of 4 rows are over `max_length` and left out: see ")
    (told,) = lines_of(tmp_path / "refused.jsonl")
    assert (told["split"], told["id"]) == ("train", "p1") and "`max_length` is 200" in told["reason"]
    with pytest.raises(ValueError, match="None of 4 rows of train is left. Raise `max_length`"):
        TrainingPreflight(tmp_path, "drop")(PairCheck(processor, 3), train=long)
    with pytest.raises(ValueError, match="`eval` has no rows, and at least one is needed. Name a split or a file"):
        preflight(PairCheck(processor, 200), train=dataset(rows), eval=long.select([]))


def test_several_sets_are_in_one_file(broken, rows, processor, tmp_path):
    preflight = TrainingPreflight(tmp_path, "drop")
    preflight(PairCheck(processor, 200), train=broken.select([0, 1]))
    with pytest.raises(ValueError, match="1 of 1 rows cannot be trained on: row p0: the prompt is empty"):
        preflight(PromptCheck(processor), verifiable=dataset([rows[0] | {"prompt": []}]))
    told = [(row["split"], row["id"]) for row in lines_of(tmp_path / "refused.jsonl")]
    assert told == [("train", "p1"), ("verifiable", "p0")]


def run_recipe(name, *arguments):
    path = ROOT / f"recipes/{name}.py"
    command = ["--config", str(ROOT / f"recipes/configs/tiny/{name}.yaml"), *map(str, arguments)]
    return load_recipe(path).main(*RecipeParser(dataclasses_of(path), str(path), ()).parse_args_and_config(command))


@pytest.fixture
def saved(broken, rows, tmp_path):
    DatasetDict({"train": broken.select([0, 1, 3, 7, 8]), "test": dataset(rows)}).save_to_disk(tmp_path / "long")
    DatasetDict({"train": broken, "test": dataset(rows)}).save_to_disk(tmp_path / "broken")
    return tmp_path


@pytest.mark.parametrize("name", ["reward_stage1", "reward_stage2", "mpo", "grpo"])
def test_recipes_refuse_before_the_first_step(name, saved, policy_path, labelling_world, monkeypatch):
    monkeypatch.setattr("vl_reward.training.guards.TrainerGuards.__init__", lambda *_, **__: pytest.fail("it trains"))
    options = ["--model_name_or_path", policy_path, "--dataset_name", saved / "broken", "--output_dir", saved / "out"]
    options += ["--reward_model", labelling_world / "model"] if name == "grpo" else ["--max_length", "200"]
    # Stage 1 trains on the rows with images alone, and GRPO on their prompts.
    refused = {"reward_stage1": [5, 6], "reward_stage2": [1, 4, 5, 6], "mpo": [1, 4, 5, 6], "grpo": [6]}[name]
    with pytest.raises(ValueError, match=f"{len(refused)} of .* rows cannot be trained on: row p{refused[0]}: "):
        run_recipe(name, *options)
    assert [row["id"] for row in lines_of(saved / "out/refused.jsonl")] == [f"p{i}" for i in refused]


def test_a_recipe_trains_on_what_is_left(saved, policy_path):
    options = ["--model_name_or_path", policy_path, "--dataset_name", saved / "long", "--output_dir", saved / "out"]
    options += ["--max_length", "200", "--too_long", "drop", "--per_device_train_batch_size", "2", "--max_steps", "-1"]
    run_recipe("reward_stage2", *options, "--num_train_epochs", "1", "--save_strategy", "epoch")
    assert [row["id"] for row in lines_of(saved / "out/refused.jsonl")] == ["p1"]
    assert json.loads((saved / "out/eval_results.json").read_text())["eval_n_pairs"] == 9
    (state,) = (saved / "out").glob("checkpoint-*/trainer_state.json")
    assert json.loads(state.read_text())["max_steps"] == 2  # four rows


# Runs that would train, measure or save nothing


def reward_trainer(model, processor, rows, folder, **settings):
    args = RewardConfig(str(folder), use_cpu=True, bf16=False, report_to="none", save_strategy="no", **settings)
    trainer = VisionRewardTrainer
    return trainer(model, args, processing_class=processor, train_dataset=dataset(rows), eval_dataset=dataset(rows))


def test_a_run_without_a_step_is_an_error(reward_model, processor, rows, tmp_path):
    trainer = reward_trainer(reward_model, processor, rows, tmp_path, num_train_epochs=0)
    with pytest.raises(
        ValueError, match="ended without a step, so nothing is saved. There are 9 rows, 0 epochs, and 1"
    ):
        trainer.train()


def test_rows_that_the_trainer_leaves_out_are_an_error(reward_model, processor, rows, tmp_path, monkeypatch):
    whole = VisionRewardTrainer._prepare_dataset
    monkeypatch.setattr(VisionRewardTrainer, "_prepare_dataset", lambda *args: whole(*args).select(range(8)))
    with pytest.raises(ValueError, match="9 rows were given to train on, and the trainer kept 8"):
        reward_trainer(reward_model, processor, rows, tmp_path)


def test_pairs_of_equal_responses_are_told(processor, rows, tmp_path, caplog):
    same = [with_answer(row, "rejected", row["chosen"][0]["content"]) for row in rows[:4]]
    with caplog.at_level(logging.WARNING):
        train, other = TrainingPreflight(tmp_path)(
            PairCheck(processor, 500), train=dataset(same + rows[4:]), eval=dataset(rows)
        )
    assert (len(train), len(other)) == (9, 9)
    (said,) = [record.message for record in caplog.records if "are the same" in record.message]
    assert said.startswith("train: 4 of 9 pairs have two responses that are the same") and "p0, p1, p2, ..." in said


def test_pairs_that_evaluation_leaves_out_are_an_error(reward_model, processor, rows, tmp_path, monkeypatch):
    trainer = reward_trainer(reward_model, processor, rows, tmp_path, per_device_eval_batch_size=4)
    assert trainer.evaluate()["eval_n_pairs"] == 9
    assert trainer.evaluate(dataset(rows[:5]), metric_key_prefix="own")["own_n_pairs"] == 5
    whole = DataCollatorForVisionReward.torch_call
    monkeypatch.setattr(DataCollatorForVisionReward, "torch_call", lambda self, rows: whole(self, rows[:3]))
    with pytest.raises(ValueError, match="7 pairs were measured, and the set has 9"):
        trainer.evaluate()


def test_grpo_with_fewer_prompts_than_a_batch_is_an_error(policy, processor, rows, tmp_path, caplog):
    args = {"use_cpu": True, "bf16": False, "report_to": "none", "num_generations": 2}
    args = GRPOConfig(str(tmp_path), per_device_train_batch_size=8, gradient_accumulation_steps=2, **args)
    prompts = dataset(rows[:7], decode=True).select_columns(["id", "prompt", "images"])
    settings = {"reward_funcs": lambda completions, **_: [0.0] * len(completions), "processing_class": processor}
    message = "7 prompts were given, and 8 prompts are sampled at a time: `generation_batch_size` is 16, and `num_gen"
    with pytest.raises(ValueError, match=message):
        VisionGRPOTrainer(policy, args, train_dataset=prompts, **settings)
    args.train_sampling_strategy = "group_by_length"
    with pytest.raises(ValueError, match="`train_sampling_strategy: group_by_length` has no effect: GRPO has an order"):
        VisionGRPOTrainer(policy, args, train_dataset=prompts, **settings)
    with caplog.at_level(logging.WARNING):
        check_batches(16, args)
        assert not [record for record in caplog.records if "leaves out" in record.message]
        check_batches(17, args)
    (said,) = [record.message for record in caplog.records if "leaves out" in record.message]
    assert said.startswith("Each epoch leaves out 1 of 17 prompts, other ones each time: 8 prompts are sampled")
