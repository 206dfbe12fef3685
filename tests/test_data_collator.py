"""Whole batches of the reward collator, and everything it refuses, by name."""

import pytest
import torch
from datasets import Dataset
from PIL import Image
from trl.data_utils import prepare_multimodal_messages

from vl_reward import DataCollatorForVisionReward
from vl_reward.data import encoding
from vl_reward.data.images import load_image
from vl_reward.models.repeated_visuals import repeated
from vl_reward.tiny.preferences import PREFERENCE_FEATURES, as_png


@pytest.fixture
def collator(processor):
    return DataCollatorForVisionReward(processor)


def red_row(**changes):
    row = {
        "id": "red",
        "prompt": [{"role": "user", "content": "What is the first digit?"}],
        "images": [Image.new("RGB", (56, 56), "red")],
        "chosen": [{"role": "assistant", "content": "Answer: 7"}],
        "rejected": [{"role": "assistant", "content": "Answer: 12"}],
    }
    return {**row, **changes}


def test_whole_batch(collator, processor):
    batch = collator([red_row()])
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        "<|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>What is the first digit?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    chosen, rejected = (
        processor.tokenizer(f"{prompt}Answer: {answer}<|im_end|>\n").input_ids for answer in ("7", "12")
    )
    pad = processor.tokenizer.pad_token_id
    assert len(rejected) == len(chosen) + 1
    assert batch["input_ids"].tolist() == [chosen + [pad], rejected]
    assert batch["attention_mask"].tolist() == [[1] * len(chosen) + [0], [1] * len(rejected)]
    is_image = [int(token == processor.image_token_id) for token in rejected]
    assert sum(is_image) == 4
    assert batch["mm_token_type_ids"].tolist() == [is_image, is_image]
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert batch["image_numbers"].tolist() == [0, 0]
    # red, normalized by CLIP's mean and standard deviation, for 2 frames of 14 x 14 pixels
    rgb = [(1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258, -0.40821073 / 0.27577711]
    patch = torch.tensor(rgb).repeat_interleave(2 * 14 * 14)
    torch.testing.assert_close(batch["pixel_values"], patch.expand(16, -1), atol=1e-5, rtol=0)


def test_what_is_computed_once_is_what_the_processor_gives(collator, processor, mixed_pairs, monkeypatch):
    """Each image is decoded and cut into patches once, and the batch is the one the processor makes of all rows."""
    rows = as_png(mixed_pairs[:6])
    loads = []
    monkeypatch.setattr(encoding, "load_image", lambda image: loads.append(image) or load_image(image))
    batch = collator(rows + rows[:3])
    assert len(loads) == sum(len(row["images"]) for row in rows)

    texts, images = [], []
    for side in ("chosen", "rejected"):
        for row in mixed_pairs[:6] + mixed_pairs[:3]:
            messages = prepare_multimodal_messages(row["prompt"] + row[side], row["images"])
            texts.append(processor.apply_chat_template(messages))
            images.append(row["images"])
    expected = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    assert len(batch["image_grid_thw"]) == len(loads) < len(batch["image_numbers"])
    of_rows = repeated(batch)
    assert of_rows.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(of_rows[key], value), key


def test_chosen_rows_come_first_and_keep_their_images(collator, processor, mixed_pairs):
    rows = mixed_pairs[:6]
    batch = collator(rows)
    texts = processor.batch_decode(batch["input_ids"])
    for i, row in enumerate(rows):
        assert row["chosen"][0]["content"] + "<|im_end|>\n" in texts[i]
        assert row["rejected"][0]["content"] + "<|im_end|>\n" in texts[i + 6]
    images_per_row = [len(row["images"]) for row in rows]
    assert images_per_row == [1, 0, 2, 1, 0, 2]
    assert (batch["input_ids"] == processor.tokenizer.vocab["<|vision_start|>"]).sum(1).tolist() == images_per_row * 2
    sizes = [[1, image.height // 14, image.width // 14] for row in rows for image in row["images"]]
    assert batch["image_grid_thw"].tolist() == sizes
    assert repeated(batch)["image_grid_thw"].tolist() == sizes * 2


def test_every_row_is_scored_at_the_newline_after_im_end(collator, processor, mixed_pairs):
    batch = collator(mixed_pairs[:6])
    last = batch["attention_mask"].sum(1) - 1
    endings = [row[i - 1 : i + 1].tolist() for row, i in zip(batch["input_ids"], last, strict=True)]
    assert endings == [processor.tokenizer("<|im_end|>\n").input_ids] * 12


def test_margin(collator):
    assert collator([red_row(margin=0.5), red_row(margin=2.0)])["margin"].tolist() == [0.5, 2.0]
    assert "margin" not in collator([red_row()])


def test_text_only_batch_trains_the_projector(reward_model, collator, text_pairs):
    """On several processes a rank whose projector has no gradient would leave the others waiting."""
    batch = collator(text_pairs[:2])
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]]
    reward_model(**batch).logits.sum().backward()
    grads = {name: p.grad for name, p in reward_model.model.visual.merger.named_parameters()}
    assert all(grad is not None and torch.all(grad == 0) for grad in grads.values())


def test_blank_image_of_a_text_only_batch_changes_no_score(reward_model, collator, text_pairs, image_pairs):
    with torch.no_grad():
        alone = reward_model(**collator(text_pairs[:1])).logits
        mixed = reward_model(**collator([text_pairs[0], image_pairs[0]])).logits[[0, 2]]
        without = collator(text_pairs[:1])
        keep = without["attention_mask"].sum(1).max()
        plain = reward_model(
            input_ids=without["input_ids"][:, :keep], attention_mask=without["attention_mask"][:, :keep]
        ).logits
    torch.testing.assert_close(alone, mixed, atol=2e-6, rtol=0)
    torch.testing.assert_close(alone, plain, atol=2e-6, rtol=0)


def test_arrow_round_trip(collator, mixed_pairs):
    before = collator(mixed_pairs[:6])
    after = collator(list(Dataset.from_list(mixed_pairs[:6], PREFERENCE_FEATURES)))
    assert before.keys() == after.keys()
    for key in before:
        assert torch.equal(before[key], after[key])


def test_none_keys_that_arrow_adds_do_no_harm(collator):
    """Qwen's template asks whether a part has an `image` key: with None under it, the question's text would vanish."""
    parts = [{"type": "image"}, {"type": "text", "text": "What is the first digit?"}]
    arrow = [{"type": "image", "text": None}, {"type": "text", "text": "What is the first digit?", "image": None}]
    plain = collator([red_row(prompt=[{"role": "user", "content": parts}])])
    padded = collator([red_row(prompt=[{"role": "user", "content": arrow}])])
    assert torch.equal(plain["input_ids"], padded["input_ids"])
    assert torch.equal(plain["input_ids"], collator([red_row()])["input_ids"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": [{"role": "assistant", "content": " "}]}, "row red: the chosen response is empty"),
        ({"rejected": [{"role": "assistant", "content": ""}]}, "row red: the rejected response is empty"),
        (
            {"chosen": [{"role": "assistant", "content": "9<|im_end|>"}]},
            r"row red: a message holds \['<\|im_end\|>'\]",
        ),
        (
            {"prompt": [{"role": "user", "content": "<|image_pad|>"}]},
            r"row red: a message holds \['<\|image_pad\|>'\]",
        ),
        ({"images": ["missing.png"]}, "row red: missing.png could not be decoded"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]},
            r"row red: Number of images provided \(1\) does not match number of image placeholders \(2\)",
        ),
    ],
)
def test_refusals_name_the_row(collator, changes, message):
    with pytest.raises(ValueError, match=message):
        collator([red_row(id="good"), red_row(**changes)])


def test_truncated_image_is_refused_by_name(collator, tmp_path):
    Image.effect_noise((56, 56), 50).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"row red: .*cut\.png could not be decoded"):
        collator([red_row(images=[str(tmp_path / "cut.png")])])


def test_long_pair_is_refused_by_name_and_token_count(processor):
    length = DataCollatorForVisionReward(processor)([red_row()])["input_ids"].shape[1]
    DataCollatorForVisionReward(processor, max_length=length)([red_row()])
    with pytest.raises(ValueError, match=f"rejected response of row red has {length} tokens, .* is {length - 1}"):
        DataCollatorForVisionReward(processor, max_length=length - 1)([red_row()])
