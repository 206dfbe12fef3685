"""MPO's loss against a hand computation, its reward shift over steps, and what the trainer refuses."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Value
from peft import LoraConfig
from torch.nn.functional import logsigmoid
from transformers import AutoModelForImageTextToText, EarlyStoppingCallback, Qwen2_5_VLForConditionalGeneration
from trl import DPOConfig

from vl_reward import MPOTrainer, SamplingParameters
from vl_reward.models.repeated_visuals import repeated
from vl_reward.tiny.preferences import PREFERENCE_FEATURES, PROMPT_FEATURES
from vl_reward.training.greedy_accuracy import GreedyAccuracy
from vl_reward.training.guards import check_reference_is_policy


BETA = 0.1
WEIGHTS = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}


def mpo_config(output_dir, **changes):
    settings = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "logging_steps": 1,
        "max_length": 128,
        "beta": BETA,
        "loss_type": list(WEIGHTS),
        "loss_weights": list(WEIGHTS.values()),
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return DPOConfig(output_dir=str(output_dir), **{**settings, **changes})


@pytest.fixture
def make_trainer(policy_path, processor, image_pairs, tmp_path):
    def make(rows=image_pairs, model=None, ref_model=None, **changes):
        peft_config, features = changes.pop("peft_config", None), changes.pop("features", PREFERENCE_FEATURES)

        def load():
            return AutoModelForImageTextToText.from_pretrained(policy_path, dtype="float32")

        return MPOTrainer(
            model=model if model is not None else load(),
            ref_model=None if peft_config else ref_model if ref_model is not None else load(),
            args=mpo_config(tmp_path / "out", **changes),
            train_dataset=Dataset.from_list(rows, features),
            processing_class=processor,
            peft_config=peft_config,
        )

    return make


def token_log_probs(model, batch):
    """Log-probabilities of each row's completion tokens, from the full logits, as a list of tensors."""
    inputs = {key: value for key, value in batch.items() if key not in ("completion_mask", "id")}
    log_probs = model(**repeated(inputs)).logits.log_softmax(-1)[:, :-1]
    tokens = log_probs.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return [row[mask.bool()] for row, mask in zip(tokens, batch["completion_mask"][:, 1:], strict=True)]


def mpo_loss(policy_tokens, ref_tokens, delta):
    """MPO, equations 3 to 8, written down row by row. Returns the loss and the implicit rewards."""
    n = len(policy_tokens) // 2
    rewards = [BETA * (p.sum() - r.sum()) for p, r in zip(policy_tokens, ref_tokens, strict=True)]
    loss = 0.0
    for i in range(n):
        chosen, rejected = rewards[i], rewards[i + n]
        loss = loss + 0.8 * -logsigmoid(chosen - rejected)
        loss = loss + 0.2 * (-logsigmoid(chosen - delta) - logsigmoid(-(rejected - delta)))
        loss = loss + 1.0 * -policy_tokens[i].mean()
    return loss / n, [reward.item() for reward in rewards]


def test_step_0_margins_are_zero_and_loss_is_0_832_plus_nll(make_trainer, image_pairs):
    trainer = make_trainer()
    batch = trainer.data_collator(image_pairs[:4])
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    metrics = trainer._metrics["train"]
    assert metrics["rewards/margins"] == [0.0]
    assert metrics["rewards/chosen"] == [0.0]
    nll = -torch.stack([row.mean() for row in token_log_probs(trainer.model, batch)[:4]]).mean()
    assert 0.8 * math.log(2) + 0.2 * 2 * math.log(2) == pytest.approx(0.832, abs=5e-4)
    assert loss.item() == pytest.approx(1.2 * math.log(2) + nll.item(), rel=1e-5)
    assert metrics["sft_loss"][0] == pytest.approx(nll.item(), rel=1e-5)


@pytest.mark.parametrize("delta", [0.0, 0.37, -1.5])
def test_loss_and_gradient_equal_the_hand_computation(make_trainer, image_pairs, delta):
    trainer = make_trainer()
    for parameter in trainer.model.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    trainer.reward_shift.total, trainer.reward_shift.count = delta, 1
    rows = sorted(image_pairs[:8], key=lambda row: len(row["chosen"][0]["content"]))
    rows = [rows[0], rows[-1]]  # of different lengths, so that per-sequence and per-token means differ
    batch = trainer.data_collator(rows)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}

    trainer.model.zero_grad()
    with torch.no_grad():
        ref_tokens = token_log_probs(trainer.ref_model, batch)
    expected, rewards = mpo_loss(token_log_probs(trainer.model, batch), ref_tokens, delta)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5)
    metrics = trainer._metrics["train"]
    assert metrics["rewards/chosen"][-1] == pytest.approx(sum(rewards[:2]) / 2, abs=1e-5)
    assert metrics["rewards/rejected"][-1] == pytest.approx(sum(rewards[2:]) / 2, abs=1e-5)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 2), (2, 4)], ids=["8 x 1", "4 x 2", "2 x 4"])
def test_training_does_not_depend_on_micro_batches(make_trainer, image_pairs, batch_size, accumulation):
    """Losses, shift and weights after 3 steps against a loop by hand with full batches of 8."""
    trainer = make_trainer(
        rows=image_pairs,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=3,
        lr_scheduler_type="constant",
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0,
        weight_decay=0,
    )
    trainer._get_train_sampler = lambda *args, **kwargs: torch.utils.data.SequentialSampler(trainer.train_dataset)
    policy = Qwen2_5_VLForConditionalGeneration(trainer.model.config)
    policy.load_state_dict(trainer.model.state_dict())
    trainer.train()

    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    seen, deltas, losses = [], [], []
    for step in range(3):
        batch = trainer.data_collator(image_pairs[8 * step : 8 * step + 8])
        deltas.append(sum(seen) / len(seen) if seen else 0.0)
        with torch.no_grad():
            ref_tokens = token_log_probs(trainer.ref_model, batch)
        loss, rewards = mpo_loss(token_log_probs(policy, batch), ref_tokens, deltas[-1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += rewards
        losses.append(loss.item())
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in history] == pytest.approx(losses, rel=1e-4)
    assert [entry["reward_shift"] for entry in history] == pytest.approx(deltas, abs=1e-4)
    assert abs(deltas[2]) > 1e-3  # the shift did move
    for key, value in policy.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[key], value, rtol=1e-3, atol=1e-4)


def test_resume_equals_an_uninterrupted_run(make_trainer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    uninterrupted = make_trainer(**settings)
    uninterrupted.train()
    state = json.loads((tmp_path / "out/checkpoint-2/reward_shift.json").read_text())
    assert state["count"] == 4 and state["total"] != 0
    resumed = make_trainer(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    first, second = uninterrupted.model.state_dict(), resumed.model.state_dict()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert resumed.reward_shift.value == uninterrupted.reward_shift.value != 0


def test_saved_policy_loads_bit_equal(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model()
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "out", dtype="float32").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in trainer.model.state_dict().items())


def test_lora_uses_the_policy_without_its_adapter_as_reference(make_trainer, image_pairs):
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj")
    trainer = make_trainer(peft_config=lora)
    trainer.model.train()
    batch = trainer.data_collator(image_pairs[:4])
    trainer.compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["rewards/margins"] == [0.0]
    trainer.train()
    trainer.compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["rewards/margins"][-1] > 0


def test_missing_reference_is_refused(policy, processor, image_pairs, tmp_path):
    with pytest.raises(ValueError, match="`ref_model` is None"):
        MPOTrainer(
            model=policy,
            ref_model=None,
            args=mpo_config(tmp_path),
            train_dataset=Dataset.from_list(image_pairs, PREFERENCE_FEATURES),
            processing_class=processor,
        )


def test_missing_weights_are_refused(make_trainer):
    with pytest.raises(ValueError, match="`loss_weights` is not set"):
        make_trainer(loss_weights=None)


def test_missing_column_is_refused(policy, processor, image_pairs, tmp_path):
    with pytest.raises(ValueError, match=r"lacks \['rejected'\]"):
        MPOTrainer(
            model=policy,
            ref_model=policy,
            args=mpo_config(tmp_path),
            train_dataset=Dataset.from_list(image_pairs, PREFERENCE_FEATURES).remove_columns("rejected"),
            processing_class=processor,
        )


def assistant(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": assistant("")}, "row .*: the chosen response is empty"),
        ({"rejected": assistant(" \n")}, "row .*: the rejected response is empty"),
        ({"chosen": assistant("9<|im_end|>")}, "a message holds"),
        ({"images": [{"bytes": b"not an image", "path": None}]}, "image bytes could not be decoded"),
    ],
)
def test_bad_rows_are_refused_by_name(make_trainer, image_pairs, changes, message):
    trainer = make_trainer()
    row = {**next(row for row in image_pairs if len(row["images"]) == 1), **changes}
    with pytest.raises(ValueError, match=message) as error:
        trainer.data_collator([image_pairs[0], row])
    assert row["id"] in str(error.value)


def test_long_pair_is_refused_not_cut(make_trainer, image_pairs):
    """TRL's collator would cut the completion away and report a loss of 0."""
    trainer = make_trainer(max_length=40)
    with pytest.raises(
        ValueError, match="row .*: a response has .* tokens, image tokens included, and `max_length` is 40"
    ):
        trainer.train()


def test_text_only_rows_train(make_trainer, text_pairs):
    trainer = make_trainer(rows=text_pairs, max_steps=1)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_plain_strings_are_turns_of_user_and_assistant(make_trainer, image_pairs):
    trainer, row = make_trainer(), image_pairs[0]
    strings = {**row, **{key: row[key][0]["content"] for key in ("prompt", "chosen", "rejected")}}
    first, second = trainer.data_collator([row]), trainer.data_collator([strings])
    assert first.pop("id") == second.pop("id")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_pair_that_breaks_the_loss_stops_the_run_by_name(make_trainer, image_pairs):
    trainer = make_trainer(train_sampling_strategy="sequential")
    compute = trainer.compute_ref_log_probs

    def broken(*arguments):
        chosen, rejected = compute(*arguments)
        rejected[2] = float("nan")
        return chosen, rejected

    trainer.compute_ref_log_probs = broken
    message = f"row {image_pairs[2]['id']}: the rejected response's log-probability is .* nan under the reference"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()


def test_a_reference_that_is_another_model_is_refused(make_trainer, image_pairs):
    other = Qwen2_5_VLForConditionalGeneration(make_trainer().model.config)
    trainer = make_trainer(ref_model=other, train_sampling_strategy="sequential")
    ids = "|".join(row["id"] for row in image_pairs)
    with pytest.raises(ValueError, match=f"Before the first step .* of row ({ids}), .* So they are two models"):
        trainer.train()


def test_what_bfloat16_rounds_is_no_other_reference():
    """One short answer may be far off; the mean over a step tells."""
    rounded = [(f"row {i}", "chosen", -0.5 + 0.08 * (-1) ** i, -0.5) for i in range(15)]
    check_reference_is_policy([*rounded, ("row 15", "rejected", -3.0, -1.0)])
    with pytest.raises(
        ValueError, match="of 16 responses differ by 0.57 .* of row 15, the rejected response: -9.00 and"
    ):
        check_reference_is_policy([*rounded, ("row 15", "rejected", -9.0, -1.0)])


def test_a_drifting_reward_shift_stops_the_run_with_the_pair(make_trainer):
    trainer = make_trainer()
    trainer.reward_shift.LIMIT = 1e-3
    with pytest.raises(FloatingPointError, match="The reward shift is .* after step [23].* of row [0-9a-f]{16}"):
        trainer.train()


@pytest.fixture
def alive():
    """Counts models that are in memory."""
    import gc
    import weakref

    models = []

    def note(model):
        models.append(weakref.ref(model))
        return model

    def count():
        gc.collect()
        return sum(reference() is not None for reference in models)

    note.count = count
    return note


def test_precomputed_reference_gives_the_losses_of_the_live_one(make_trainer, policy_path, tmp_path, alive):
    def losses(trainer):
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    live = losses(make_trainer())
    reference = alive(Qwen2_5_VLForConditionalGeneration.from_pretrained(policy_path, dtype="float32"))
    trainer = make_trainer(ref_model=reference, precompute_ref_log_probs=True, precompute_ref_batch_size=5)
    (shard,) = (tmp_path / "out/ref_log_probs").rglob("*.jsonl")
    assert len(shard.read_text().splitlines()) == 24
    del reference
    ahead = losses(trainer)
    assert ahead == pytest.approx(live, rel=1e-5) and len(ahead) == 4
    assert trainer.ref_model is None and alive.count() == 0

    # What is there is not computed again, and what is lost is.
    columns, text = trainer.train_dataset["ref_chosen_logps"][:], shard.read_text()
    shard.write_text(text.replace('ref_chosen_logps": -', 'ref_chosen_logps": -1'))
    again = make_trainer(precompute_ref_log_probs=True, precompute_ref_batch_size=5)
    assert again.train_dataset["ref_chosen_logps"][:] != columns
    shard.unlink()
    again = make_trainer(precompute_ref_log_probs=True, precompute_ref_batch_size=5)
    assert again.train_dataset["ref_chosen_logps"][:] == columns and shard.read_text() == text

    other = Qwen2_5_VLForConditionalGeneration.from_pretrained(policy_path, dtype="float32")
    other.lm_head.weight.data += 0.1 * torch.randn(other.lm_head.weight.shape)
    changed = make_trainer(ref_model=other, precompute_ref_log_probs=True)
    assert changed.train_dataset["ref_chosen_logps"][:] != pytest.approx(columns, abs=1e-2)


def test_precomputing_needs_a_reference(make_trainer):
    with pytest.raises(ValueError, match="`precompute_ref_log_probs` needs a `ref_model`"):
        make_trainer(precompute_ref_log_probs=True, peft_config=LoraConfig(target_modules=["q_proj"]))


def test_training_stops_when_accuracy_falls_and_keeps_the_best(policy_path, processor, image_pairs, tmp_path):
    """The policy is trained to say what is right once, then what is not; the accuracy is that of real generation."""
    rows = [row for row in image_pairs if len(row["images"]) == 1][:4]
    prompts = Dataset.from_list(
        [{key: row[key] for key in ("id", "prompt", "images")} | {"answer": "I"} for row in rows], PROMPT_FEATURES
    )

    def load():
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(policy_path, dtype="float32")

    parameters = SamplingParameters(max_new_tokens=2)
    accuracy = GreedyAccuracy(processor, prompts, lambda response, answer: response.startswith(answer), parameters)
    seen = []

    def evaluate(policy):
        measures = accuracy(policy)
        seen.append(measures["greedy_accuracy"])
        # Later evaluations are made worse than the first, whatever the policy says.
        return {**measures, "greedy_accuracy": measures["greedy_accuracy"] - 0.1 * len(seen)}

    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 40}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "greedy_accuracy", "learning_rate": 3e-3}
    trainer = MPOTrainer(
        model=load(),
        ref_model=load(),
        args=mpo_config(tmp_path / "out", **settings),
        train_dataset=Dataset.from_list(rows, PREFERENCE_FEATURES),
        processing_class=processor,
        eval_dataset=prompts,
        evaluate_policy=evaluate,
        callbacks=[EarlyStoppingCallback(2)],
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    history = [entry["eval_greedy_accuracy"] for entry in trainer.state.log_history if "eval_greedy_accuracy" in entry]
    step = 2 * (1 + history.index(max(history)))
    assert best.name == f"checkpoint-{step}" and trainer.state.global_step == step + 4 < 40
    kept = Qwen2_5_VLForConditionalGeneration.from_pretrained(best, dtype="float32").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in trainer.model.state_dict().items())
    # The best policy, asked again, answers as it did then, and training has its own generation config back.
    assert accuracy(trainer.model)["greedy_accuracy"] == seen[history.index(max(history))]
    assert trainer.model.generation_config.max_new_tokens is None


def test_pairs_to_evaluate_on_have_the_reference_too(policy_path, processor, image_pairs, tmp_path):
    """Without it they would be compared with the policy itself: every margin zero, and no error."""

    def trainer(name, **changes):
        models = [Qwen2_5_VLForConditionalGeneration.from_pretrained(policy_path, dtype="float32") for _ in range(2)]
        return MPOTrainer(
            *models,
            args=mpo_config(tmp_path / name, **changes),
            train_dataset=Dataset.from_list(image_pairs[:8], PREFERENCE_FEATURES),
            eval_dataset=Dataset.from_list(image_pairs[8:14], PREFERENCE_FEATURES),
            processing_class=processor,
        )

    live, ahead = trainer("live"), trainer("ahead", precompute_ref_log_probs=True)
    for one in (live, ahead):
        one.train()
    losses = [one.evaluate()["eval_loss"] for one in (live, ahead)]
    margins = [one.state.log_history[-1]["eval_rewards/margins"] for one in (live, ahead)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and margins[1] == pytest.approx(margins[0], abs=1e-4)
    assert abs(margins[0]) > 1e-3
    with pytest.raises(ValueError, match="row .* has no reference log-probabilities, and the reference is gone"):
        ahead.evaluate(Dataset.from_list(image_pairs[14:18], PREFERENCE_FEATURES))


def test_reference_log_probs_of_an_unknown_model_are_refused(image_pairs, policy, processor, tmp_path):
    dataset = Dataset.from_list(image_pairs[:4], PREFERENCE_FEATURES)
    with pytest.raises(ValueError, match=r"has the columns \['ref_chosen_logps', 'ref_rejected_logps'\]"):
        MPOTrainer(
            model=policy,
            ref_model=policy,
            args=mpo_config(tmp_path),
            train_dataset=dataset.add_column("ref_chosen_logps", [0.0] * 4).add_column("ref_rejected_logps", [0.0] * 4),
            processing_class=processor,
        )


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_checkpoints_with_tied_embeddings_are_read_back(config, processor, image_pairs, tmp_path, tied):
    """As those of Qwen2.5-VL-3B: what is tied is saved once. Resumed training ends as if it had not been stopped."""
    config = copy.deepcopy(config)
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path / "policy")

    def train(name, resume=None, **settings):
        policy, reference = (
            Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "policy", dtype="float32") for _ in range(2)
        )
        trainer = MPOTrainer(
            policy,
            reference,
            mpo_config(tmp_path / name, max_steps=2, save_strategy="steps", save_steps=1, **settings),
            processing_class=processor,
            train_dataset=Dataset.from_list(image_pairs[:8], PREFERENCE_FEATURES),
            eval_dataset=Dataset.from_list(image_pairs[:8], PREFERENCE_FEATURES),
            evaluate_policy=lambda policy: {"quality": 1.0},
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    whole = train("whole")
    resumed = train("resumed", resume=str(tmp_path / "whole/checkpoint-1"))
    assert (whole["lm_head.weight"].data_ptr() == whole["model.language_model.embed_tokens.weight"].data_ptr()) == tied
    assert all(torch.allclose(tensor, resumed[name], atol=1e-6) for name, tensor in whole.items())
    best = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "quality",
    }
    train("best", **best)


def test_sorting_by_length_needs_lengths(make_trainer, image_pairs):
    with pytest.raises(ValueError, match="`train_sampling_strategy` is group_by_length, which sorts rows"):
        make_trainer(train_sampling_strategy="group_by_length")
    trainer = make_trainer(
        [row | {"length": number % 2} for number, row in enumerate(image_pairs)],
        features=Features(PREFERENCE_FEATURES | {"length": Value("int64")}),
        train_sampling_strategy="group_by_length",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
    )
    place = {f"row {row['id']}": number for number, row in enumerate(image_pairs)}
    lengths = [place[id] % 2 for batch in trainer.get_train_dataloader() for id in batch["id"]]
    assert sum(lengths) == 12
    for start in range(0, 24, 6):  # transformers sorts three batches at a time
        assert lengths[start : start + 6] == sorted(lengths[start : start + 6], reverse=True)
