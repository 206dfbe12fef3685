"""The reward model: what loads, what is refused, and what the score depends on (pitfalls of custom classes)."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoModelForSequenceClassification

from vl_reward import (
    DataCollatorForVisionReward,
    Qwen2_5_VLForSequenceClassification,
    Qwen3VLForSequenceClassification,
)
from vl_reward.models.repeated_visuals import repeated
from vl_reward.tiny.architectures import build_config


REWARD_MODELS = {"qwen2_5_vl": Qwen2_5_VLForSequenceClassification, "qwen3_vl": Qwen3VLForSequenceClassification}


def body(model):
    return {key: value for key, value in model.state_dict().items() if key not in ("score.weight", "lm_head.weight")}


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.fixture
def reward_class(family):
    return REWARD_MODELS[family]


@pytest.fixture
def batch(processor, image_pairs):
    return DataCollatorForVisionReward(processor)(image_pairs[:4])


@pytest.mark.parametrize("save_original_format", [True, False], ids=["hub layout", "native layout"])
@pytest.mark.parametrize("max_shard_size", ["5GB", "1MB"], ids=["one file", "sharded"])
def test_base_checkpoint_loads_bit_equal(policy, reward_class, tmp_path, save_original_format, max_shard_size):
    policy.save_pretrained(tmp_path, save_original_format=save_original_format, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "1MB")
    model, info = reward_class.from_pretrained(tmp_path, output_loading_info=True)
    assert_equal_weights(body(model), body(policy))
    assert info["missing_keys"] == {"score.weight"}
    assert info["unexpected_keys"] == {"lm_head.weight"}


def test_hub_layout_is_the_layout_of_the_hub(policy_path, family):
    """Otherwise the test above would not test the hub's layout, which for Qwen3-VL is transformers' own."""
    keys = load_file(policy_path / "model.safetensors").keys()
    vision, text = {"qwen2_5_vl": ("visual", "model"), "qwen3_vl": ("model.visual", "model.language_model")}[family]
    assert f"{vision}.patch_embed.proj.weight" in keys
    assert f"{text}.layers.0.self_attn.q_proj.weight" in keys


def test_reward_checkpoint_round_trip(reward_model, reward_class, tmp_path):
    reward_model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == reward_model.state_dict().keys()
    again, info = reward_class.from_pretrained(tmp_path, output_loading_info=True)
    assert_equal_weights(again.state_dict(), reward_model.state_dict())
    assert not info["missing_keys"] and not info["unexpected_keys"]
    auto = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(auto) is reward_class
    assert_equal_weights(auto.state_dict(), reward_model.state_dict())


@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)
def test_subclass_without_a_key_mapping_is_refused(policy_path):
    """transformers would give it a random decoder: the renames are looked up by class name."""

    class Renamed(Qwen2_5_VLForSequenceClassification):
        pass

    with pytest.raises(ValueError, match="does not fit Renamed: .* weights are missing"):
        Renamed.from_pretrained(policy_path)


def test_the_wrong_family_is_refused_by_name(policy_path, family, reward_class, processor):
    """transformers would warn, and draw what it does not find."""
    other = next(other for other in REWARD_MODELS.values() if other is not reward_class)
    named = f"model of type '{family}', and {other.__name__} is for {other.family}"
    with pytest.raises(ValueError, match=named):
        other.from_pretrained(policy_path)
    with pytest.raises(ValueError, match=named):
        other.from_pretrained(policy_path, config=build_config(processor.tokenizer, family))


def test_reward_checkpoint_without_head_is_refused(reward_model, reward_class, tmp_path):
    state = {key: value for key, value in reward_model.state_dict().items() if key != "score.weight"}
    reward_model.save_pretrained(tmp_path, state_dict=state)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [reward_class.__name__]
    with pytest.raises(ValueError, match="score.weight"):
        reward_class.from_pretrained(tmp_path)


def test_score_depends_on_the_image(reward_model, batch):
    with torch.no_grad():
        scores = reward_model(**batch).logits
        blank = reward_model(**{**batch, "pixel_values": torch.zeros_like(batch["pixel_values"])}).logits
        rows = repeated(batch)
        images = rows["pixel_values"].split(rows["image_grid_thw"].prod(-1).tolist())
        first_changed = reward_model(**{**rows, "pixel_values": torch.cat([-images[0], *images[1:]])}).logits
    assert scores.shape == (8, 1)
    assert ((scores - blank).abs() > 1e-4).all()
    assert abs(scores[0] - first_changed[0]) > 1e-4
    torch.testing.assert_close(scores[1:], first_changed[1:], atol=1e-6, rtol=0)


def test_image_tokens_without_pixels_are_refused(reward_model, batch):
    with pytest.raises(ValueError, match="no `pixel_values`"):
        reward_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    misspelt = {**batch, "pixel_valuess": batch["pixel_values"]}
    del misspelt["pixel_values"]
    with pytest.raises(ValueError, match="no `pixel_values`"):
        reward_model(**misspelt)


def test_grid_without_token_types_is_refused(reward_model, batch):
    del batch["mm_token_type_ids"]
    with pytest.raises(ValueError, match="without `mm_token_type_ids`"):
        reward_model(**batch)


def test_score_does_not_depend_on_padding_or_batch(reward_model, processor, mixed_pairs):
    collator = DataCollatorForVisionReward(processor)
    batch = collator(mixed_pairs[:6])
    with torch.no_grad():
        together = reward_model(**batch).logits
        alone = torch.cat([reward_model(**collator([row])).logits for row in mixed_pairs[:6]])
    alone = torch.cat([alone[0::2], alone[1::2]])  # pair by pair to all chosen first
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=0)

    left = {}
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        pad = processor.tokenizer.pad_token_id if key == "input_ids" else 0
        rows = [row[mask == 1] for row, mask in zip(batch[key], batch["attention_mask"], strict=True)]
        width = max(len(row) for row in rows) + 3
        left[key] = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=pad) for row in rows])
    with torch.no_grad():
        padded_left = reward_model(**{**batch, **left}).logits
    torch.testing.assert_close(together, padded_left, atol=2e-6, rtol=0)


def test_last_token_equal_to_the_pad_token_is_scored(reward_model, processor):
    """transformers' own rule takes the last token that differs from the pad token."""
    pad = processor.tokenizer.pad_token_id
    input_ids = torch.tensor([[9, 10, pad], [9, 10, 11]])
    with torch.no_grad():
        scores = reward_model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
        shorter = reward_model(input_ids=input_ids[:, :2]).logits
        alone = reward_model(input_ids=input_ids[:1]).logits
    assert abs(scores[0] - shorter[0]) > 1e-4
    torch.testing.assert_close(scores[0], alone[0], atol=2e-6, rtol=0)
    reward_model.config.text_config.pad_token_id = None
    with torch.no_grad():
        assert torch.equal(reward_model(input_ids=input_ids).logits, scores)


def test_head_computes_in_float32(policy_path, reward_class):
    model = reward_class.from_pretrained(policy_path, dtype="bfloat16")
    assert model.score.weight.dtype == torch.float32
    assert model.dtype == torch.bfloat16
    torch.nn.init.normal_(model.score.weight)
    hidden = torch.randn(1, model.config.text_config.hidden_size).repeat(512, 1)
    hidden += torch.linspace(0, 1e-2, 512)[:, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model.score(hidden)
    assert scores.dtype == torch.float32
    assert scores.unique().numel() > 256
    assert scores.to(torch.bfloat16).unique().numel() < 64
    model.score.to(torch.bfloat16)  # as a DeepSpeed bf16 engine does
    assert model.score(hidden.bfloat16()).dtype == torch.float32


def test_policy_weights_are_not_an_accident(policy):
    """Two random decoders differ: the equality tests above can fail."""
    other = AutoModelForImageTextToText.from_config(policy.config)
    assert not torch.equal(
        body(policy)["model.language_model.layers.0.mlp.up_proj.weight"],
        body(other)["model.language_model.layers.0.mlp.up_proj.weight"],
    )
