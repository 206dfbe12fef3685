"""The reward trainer: its loss, what it saves, what it resumes from, and when it stops."""

import functools
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from PIL import Image
from safetensors.torch import load_file
from test_configs import ROOT
from transformers import AutoProcessor
from trl import RewardConfig

from vl_reward import Qwen2_5_VLForSequenceClassification, RewardScorer, VisionRewardTrainer
from vl_reward.tiny.preferences import PREFERENCE_FEATURES
from vl_reward.training.complete_checkpoint import mark_complete


def reward_config(output_dir, **changes):
    settings = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "logging_steps": 1,
        "max_length": 128,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return RewardConfig(output_dir=str(output_dir), **{**settings, **changes})


def as_dataset(rows):
    return rows if isinstance(rows, Dataset) else Dataset.from_list(rows, PREFERENCE_FEATURES)


@pytest.fixture
def make_trainer(reward_model, processor, mixed_pairs, tmp_path):
    def make(model=reward_model, rows=mixed_pairs, eval_rows=None, peft_config=None, **changes):
        return VisionRewardTrainer(
            model=model,
            args=reward_config(tmp_path / "out", **changes),
            train_dataset=as_dataset(rows),
            eval_dataset=None if eval_rows is None else as_dataset(eval_rows),
            processing_class=processor,
            peft_config=peft_config,
        )

    return make


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_first_loss_is_ln_2_with_a_zero_head(reward_model, make_trainer):
    torch.nn.init.zeros_(reward_model.score.weight)
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert losses(trainer) == [pytest.approx(math.log(2), abs=1e-6)]


def test_loss_is_bradley_terry(reward_model, make_trainer, mixed_pairs):
    trainer = make_trainer()
    batch = trainer.data_collator(mixed_pairs[:4])
    with torch.no_grad():
        chosen, rejected = reward_model(**batch).logits.squeeze(-1).chunk(2)
        loss = trainer.compute_loss(reward_model, dict(batch))
        margin = trainer.compute_loss(reward_model, {**batch, "margin": torch.full((4,), 0.5)})
    expected = [math.log1p(math.exp(r - c)) for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    assert loss.item() == pytest.approx(sum(expected) / 4, rel=1e-6)
    expected = [math.log1p(math.exp(r - c + 0.5)) for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    assert margin.item() == pytest.approx(sum(expected) / 4, rel=1e-6)


def test_overfits_to_accuracy_1(make_trainer, mixed_pairs):
    rows = mixed_pairs[:6]
    trainer = make_trainer(rows=rows, eval_rows=rows, max_steps=60, per_device_train_batch_size=6)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == 1.0
    assert metrics["eval_n_pairs"] == 6
    assert metrics["eval_loss"] < 0.05


def test_frozen_vision_tower_stays_and_all_else_moves(reward_model, make_trainer):
    reward_model.model.visual.requires_grad_(False)
    reward_model.model.visual.merger.requires_grad_(True)
    before = {key: value.clone() for key, value in reward_model.state_dict().items()}
    make_trainer().train()
    moved = {key for key, value in reward_model.state_dict().items() if not torch.equal(value, before[key])}
    frozen = {key for key in before if key.startswith("model.visual.") and ".merger." not in key}
    seen = {key for key in before if "embed_tokens" not in key}
    assert frozen and not moved & frozen
    assert seen - frozen <= moved


LORA = LoraConfig(
    task_type="SEQ_CLS",
    r=4,
    target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
    modules_to_save=["score", "merger"],
)


@pytest.mark.parametrize("variant", ["plain", "sharded", "gradient checkpointing", "lora"])
def test_resume_equals_an_uninterrupted_run(policy_path, make_trainer, tmp_path, variant):
    settings = {"save_strategy": "steps", "save_steps": 2}
    settings["gradient_checkpointing"] = variant == "gradient checkpointing"

    def trainer():
        torch.manual_seed(0)
        model = Qwen2_5_VLForSequenceClassification.from_pretrained(policy_path, dtype="float32")
        if variant == "sharded":
            model.save_pretrained = functools.partial(model.save_pretrained, max_shard_size="1MB")
        return make_trainer(model, peft_config=LORA if variant == "lora" else None, **settings)

    uninterrupted = trainer()
    before = {key: value.clone() for key, value in uninterrupted.model.state_dict().items()}
    uninterrupted.train()
    assert (tmp_path / "out/checkpoint-2/model.safetensors.index.json").exists() == (variant == "sharded")
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    first, second = uninterrupted.model.state_dict(), resumed.model.state_dict()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert sum(not torch.equal(first[key], before[key]) for key in first) > 30
    assert losses(uninterrupted) == losses(resumed)


def test_load_best_model_restores_it(reward_model, make_trainer, mixed_pairs, tmp_path):
    trainer = make_trainer(
        eval_rows=mixed_pairs[:4],
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    trainer.train()
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert all(torch.equal(value, best[key]) for key, value in trainer.model.state_dict().items())


def test_resume_from_foreign_weights_is_refused(policy, make_trainer, tmp_path):
    """transformers logs a warning and trains on from the base."""
    trainer = make_trainer(save_strategy="steps", save_steps=2)
    trainer.train()
    policy.save_pretrained(tmp_path / "out/checkpoint-2")  # the hub's layout
    mark_complete(tmp_path / "out/checkpoint-2", trainer.resume_settings)  # as another trainer would have left it
    with pytest.raises(ValueError, match="does not hold this model's weights"):
        make_trainer().train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))


def test_every_checkpoint_holds_the_processor(make_trainer, policy_path, mixed_pairs, tmp_path):
    processor = AutoProcessor.from_pretrained(policy_path, max_pixels=4 * 56 * 56)
    probe = Image.new("RGB", (700, 700))

    def tokens(a_processor):
        text = "<|vision_start|><|image_pad|><|vision_end|>"
        return (a_processor(text=[text], images=[probe])["input_ids"][0]).count(a_processor.image_token_id)

    assert tokens(processor) == 16
    trainer = VisionRewardTrainer(
        model=Qwen2_5_VLForSequenceClassification.from_pretrained(policy_path, dtype="float32"),
        args=reward_config(tmp_path / "out", save_strategy="steps", save_steps=2, max_steps=2),
        train_dataset=Dataset.from_list(mixed_pairs, PREFERENCE_FEATURES),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    for path in (tmp_path / "out", tmp_path / "out/checkpoint-2"):
        saved = AutoProcessor.from_pretrained(path)
        assert tokens(saved) == 16
        assert saved.chat_template == processor.chat_template
        assert RewardScorer.from_pretrained(path).processor.image_token_id == processor.image_token_id


def test_evaluation_counts_each_pair_once(reward_model, make_trainer, mixed_pairs, processor):
    trainer = make_trainer(eval_rows=mixed_pairs[:7], per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    scorer = RewardScorer(reward_model, processor)
    rows = mixed_pairs[:7]
    images = [row["images"] for row in rows]
    chosen = scorer([row["prompt"] for row in rows], [row["chosen"] for row in rows], images)
    rejected = scorer([row["prompt"] for row in rows], [row["rejected"] for row in rows], images)
    assert metrics["eval_n_pairs"] == 7
    assert metrics["eval_accuracy"] == pytest.approx(sum(c > r for c, r in zip(chosen, rejected, strict=True)) / 7)
    assert metrics["eval_margin"] == pytest.approx((sum(chosen) - sum(rejected)) / 7, abs=1e-5)


PAIRS_ON_2_PROCESSES = """
import json, sys
from datasets import Dataset
from transformers import AutoProcessor
from trl import RewardConfig
from vl_reward import Qwen2_5_VLForSequenceClassification, VisionRewardTrainer

folder = sys.argv[1]
rows = Dataset.load_from_disk(f"{folder}/rows")
args = RewardConfig(output_dir=f"{folder}/out", per_device_eval_batch_size=2, max_length=128, bf16=False, use_cpu=True,
                    gradient_checkpointing=False, report_to="none", disable_tqdm=True)
trainer = VisionRewardTrainer(
    model=Qwen2_5_VLForSequenceClassification.from_pretrained(f"{folder}/model", dtype="float32"), args=args,
    train_dataset=rows, eval_dataset=rows, processing_class=AutoProcessor.from_pretrained(f"{folder}/model"),
)
metrics = trainer.evaluate()
assert trainer.accelerator.num_processes == 2
if trainer.accelerator.is_main_process:
    json.dump(metrics, open(f"{folder}/metrics.json", "w"))
trainer.accelerator.wait_for_everyone()  # gloo's threads abort a process that ends before the other one
trainer.accelerator.end_training()
"""


def test_evaluation_on_2_processes_is_that_of_the_pairs(reward_model, processor, mixed_pairs, tmp_path):
    """Seven pairs in batches of two on two processes: one pair is repeated to fill up, and must not count twice."""
    rows = mixed_pairs[:7]
    Dataset.from_list(rows, PREFERENCE_FEATURES).save_to_disk(tmp_path / "rows")
    reward_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "evaluate.py").write_text(PAIRS_ON_2_PROCESSES)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launch += [str(ROOT / "accelerate_configs/cpu_2_processes.yaml"), str(tmp_path / "evaluate.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(launch, env=environment, check=True, timeout=300)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    scorer, images = RewardScorer(reward_model, processor), [row["images"] for row in rows]
    chosen, rejected = (
        scorer([row["prompt"] for row in rows], [row[side] for row in rows], images) for side in ("chosen", "rejected")
    )
    assert metrics["eval_n_pairs"] == 7
    assert metrics["eval_accuracy"] == pytest.approx(sum(c > r for c, r in zip(chosen, rejected, strict=True)) / 7)
    assert metrics["eval_margin"] == pytest.approx((sum(chosen) - sum(rejected)) / 7, abs=1e-5)


def test_lora_trains_and_saves_the_head(policy_path, make_trainer, processor, mixed_pairs, tmp_path):
    torch.manual_seed(0)
    model = Qwen2_5_VLForSequenceClassification.from_pretrained(policy_path, dtype="float32")
    model.model.visual.requires_grad_(False)
    head = model.score.weight.detach().clone()
    trainer = make_trainer(model, peft_config=LORA)
    trainer.train()
    trainer.save_model()
    assert any("score" in key for key in load_file(tmp_path / "out/adapter_model.safetensors"))
    assert not any("visual.blocks" in key for key in load_file(tmp_path / "out/adapter_model.safetensors"))

    batch = trainer.data_collator(mixed_pairs[:2])
    with torch.no_grad():
        scores = trainer.model.eval()(**batch).logits
        torch.manual_seed(1)  # the base's own head is drawn anew, and must not matter
        base = Qwen2_5_VLForSequenceClassification.from_pretrained(policy_path, dtype="float32")
        reloaded = PeftModel.from_pretrained(base, tmp_path / "out").eval()
        assert torch.equal(reloaded(**batch).logits, scores)
        merged = trainer.model.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        again = Qwen2_5_VLForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(again(**batch).logits, scores, atol=1e-5, rtol=0)
    assert not torch.equal(again.score.weight, head)


def test_lora_without_the_head_is_refused(make_trainer):
    with pytest.raises(ValueError, match="modules_to_save"):
        make_trainer(peft_config=LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["merger"]))


def test_missing_column_is_refused(make_trainer, mixed_pairs, processor, reward_model, tmp_path):
    dataset = Dataset.from_list(mixed_pairs, PREFERENCE_FEATURES).rename_column("images", "pictures")
    with pytest.raises(ValueError, match=r"lacks \['images'\]"):
        VisionRewardTrainer(
            model=reward_model,
            args=reward_config(tmp_path),
            train_dataset=dataset,
            processing_class=processor,
        )


def test_tokenizer_instead_of_processor_is_refused(mixed_pairs, processor, reward_model, tmp_path):
    """TRL would train on the text alone."""
    with pytest.raises(ValueError, match="needs the processor, not the tokenizer"):
        VisionRewardTrainer(
            model=reward_model,
            args=reward_config(tmp_path),
            train_dataset=Dataset.from_list(mixed_pairs, PREFERENCE_FEATURES),
            processing_class=processor.tokenizer,
        )


def test_non_finite_loss_stops_and_keeps_the_last_checkpoint(reward_model, make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=2)
    step = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: (
        step(*args, **kwargs) * (math.nan if trainer.state.global_step == 3 else 1)
    )
    with pytest.raises(FloatingPointError, match="loss is nan at step 3"):
        trainer.train()
    saved = load_file(tmp_path / "out/checkpoint-2/model.safetensors")
    assert all(value.isfinite().all() for value in saved.values())
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-2"]


def test_corrupt_image_is_named_with_its_row(make_trainer, mixed_pairs):
    rows = [{**row, "images": [{"bytes": b"not an image", "path": None}]} for row in mixed_pairs[:4]]
    with pytest.raises(ValueError, match=f"row {rows[0]['id']}: image bytes could not be decoded|row .*: image bytes"):
        make_trainer(rows=rows).train()


STRATEGIES = pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])


@STRATEGIES
@pytest.mark.parametrize("lengths", [None, [1, None, 3, 4], [1.5, 2.0, 3.0, 4.0], [-1, 2, 3, 4]])
def test_sorting_by_lengths_that_are_not_there_is_refused(make_trainer, mixed_pairs, strategy, lengths):
    rows = Dataset.from_list(mixed_pairs[:4], PREFERENCE_FEATURES)
    rows = rows if lengths is None else rows.add_column("length", lengths)
    message = (
        f"`train_sampling_strategy` is {strategy}, .* the train rows have no whole number each in a column `length`"
    )
    with pytest.raises(ValueError, match=message):
        make_trainer(rows=rows, train_sampling_strategy=strategy)


@STRATEGIES
def test_rows_are_sorted_by_their_column(make_trainer, mixed_pairs, strategy):
    """Every second row is long. transformers sorts three batches at a time, of rows drawn at random."""
    rows = Dataset.from_list(mixed_pairs[:24], PREFERENCE_FEATURES).add_column("tokens", [1, 100] * 12)
    settings = {"train_sampling_strategy": strategy, "length_column_name": "tokens", "per_device_train_batch_size": 2}
    trainer = make_trainer(rows=rows, eval_rows=rows, gradient_accumulation_steps=1, **settings)
    collate, batches = trainer.data_collator, []
    trainer.data_collator = lambda rows: batches.append([row["tokens"] for row in rows]) or collate(rows)
    list(trainer.get_train_dataloader())
    assert sorted(sum(batches, [])) == [1] * 12 + [100] * 12
    if strategy == "group_by_length":
        for start in range(0, 12, 3):
            assert (three := sum(batches[start : start + 3], [])) == sorted(three, reverse=True)
    trainer.train()
    assert trainer.evaluate()["eval_n_pairs"] == 24
