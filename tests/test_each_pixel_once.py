"""A batch holds each distinct image and video once, from the worker to the vision tower, and nothing else changes."""

import pickle

import pytest
import torch
from datasets import Dataset
from PIL import Image
from test_mpo_trainer import make_trainer  # noqa: F401
from test_prefix_sharing import compute, models, modules_run, tokens_computed  # noqa: F401
from torch.utils.data import DataLoader

from vl_reward import DataCollatorForVisionReward, RewardScorer, share_prefixes, unshare_prefixes
from vl_reward.data.collators import DataCollatorForMPO
from vl_reward.data.encoding import encode_conversations, encode_prompts
from vl_reward.models.repeated_visuals import distinct, repeated
from vl_reward.prefix_sharing import packed_images
from vl_reward.tiny.preferences import PREFERENCE_FEATURES, as_png


COLLATORS = [DataCollatorForVisionReward, DataCollatorForMPO]
QUESTION = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which is larger?"}]}


def noise(processor, width, height, seed):
    """An image of `width` times `height` visual tokens."""
    side = processor.image_processor.patch_size * processor.image_processor.merge_size
    pixels = torch.randint(256, (height * side, width * side, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def frames(processor, seed, number=4):
    return [noise(processor, 2, 1, 10 * seed + i) for i in range(number)]


@pytest.fixture(scope="session")
def rows(processor):
    """Pairs with one image, two, a video, all of these again, and nothing."""
    first, second, film = noise(processor, 4, 2, 0), noise(processor, 2, 3, 1), frames(processor, 2)
    given = [([first], []), ([second, first], []), ([], [film]), ([first.copy()], [film]), ([], []), ([second], [])]
    made = []
    for number, (images, videos) in enumerate(given):
        parts = [{"type": "image"}] * len(images) + [{"type": "video"}] * len(videos)
        parts.append({"type": "text", "text": f"Which is larger? {number % 2}"})
        sides = {side: [{"role": "assistant", "content": f"{side}: {number}"}] for side in ("chosen", "rejected")}
        prompt = [{"role": "user", "content": parts}]
        made.append({"id": str(number), "prompt": prompt, "images": images, "videos": videos, **sides})
    return made


def model_inputs(batch):
    return {key: value for key, value in batch.items() if key not in ("id", "completion_mask")}


@pytest.mark.parametrize("collator", COLLATORS)
def test_a_batch_of_pairs_holds_each_image_and_video_once(collator, processor, rows):
    batch = collator(processor)([dict(row) for row in rows])
    tokens = processor.image_processor.merge_size**2
    assert batch["image_grid_thw"].prod(1).tolist() == [8 * tokens, 6 * tokens]
    assert batch["image_numbers"].tolist() == [0, 1, 0, 0, 1] * 2
    assert batch["video_numbers"].tolist() == [0, 0] * 2 and len(batch["video_grid_thw"]) == 1
    width = batch["pixel_values"].shape[1]
    assert batch["pixel_values"].nbytes == 14 * tokens * width * 4
    assert batch["pixel_values_videos"].nbytes == batch["video_grid_thw"].prod().item() * width * 4
    of_rows = repeated(batch)
    assert of_rows["pixel_values"].nbytes == (3 * 8 + 2 * 6) * 2 * tokens * width * 4
    assert of_rows.keys() == batch.keys() - {"image_numbers", "video_numbers"}


@pytest.mark.parametrize("k", [1, 8, 32])
def test_k_responses_to_an_image_hold_its_patches_once(processor, k):
    image = noise(processor, 16, 16, 0)
    turns = [[QUESTION, {"role": "assistant", "content": f"The {i}."}] for i in range(k)]
    batch = encode_conversations(processor, turns, [[image]] * k, ["r"] * k)
    alone = processor.image_processor(images=[image], return_tensors="pt")
    assert torch.equal(batch["pixel_values"], alone["pixel_values"])
    assert torch.equal(batch["image_grid_thw"], alone["image_grid_thw"])
    assert batch["image_numbers"].tolist() == [0] * k
    # What a worker process sends: an image, and of each row its tokens, their mask and their types.
    pixels, tokens = alone["pixel_values"].nbytes, batch["input_ids"].numel() * (8 + 8 + 4)
    assert pixels + tokens < len(pickle.dumps(dict(batch))) < pixels + tokens + 10_000


@pytest.mark.parametrize("share", [share_prefixes, unshare_prefixes])
def test_scores_and_gradients_are_exactly_those_of_repeated_images(reward_model, processor, rows, share):
    model, batch = share(reward_model), DataCollatorForVisionReward(processor)(rows)
    expected, expected_gradients = compute(model, repeated(batch))
    logits, gradients = compute(model, batch)
    assert torch.equal(logits, expected) and logits.unique().numel() > 6
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert torch.equal(gradients[name], gradient), name


@pytest.mark.parametrize("share", [share_prefixes, unshare_prefixes])
def test_loss_and_gradients_of_mpo_are_exactly_those_of_repeated_images(make_trainer, rows, share):  # noqa: F811
    trainer = make_trainer(max_length=None)
    share(trainer.model.train()), share(trainer.ref_model)
    for parameter in trainer.model.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for encode in (repeated, dict):
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, encode(trainer.data_collator([dict(row) for row in rows])))
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in trainer.model.parameters())])
    assert trainer._metrics["train"]["rewards/margins"][-1] != 0
    assert all(map(torch.equal, *found)) and len(found[0]) > 50


def test_candidates_are_scored_from_one_image(reward_model, processor, monkeypatch):
    reward_model.score.weight.data.normal_()
    row = {"prompt": [QUESTION], "images": [noise(processor, 16, 16, 0)], "responses": [f"The {i}." for i in range(32)]}
    shown, forward = [], reward_model.forward
    monkeypatch.setattr(reward_model, "forward", lambda **batch: (shown.append(batch), forward(**batch))[1])
    plain = RewardScorer(reward_model, processor, max_batch_tokens=10**6).score_candidates([row])[0]
    share_prefixes(reward_model)
    monkeypatch.setattr(packed_images, "unique_images", None)  # nothing is compared
    shared = RewardScorer(reward_model, processor).score_candidates([row])[0]
    assert shared == pytest.approx(plain, abs=1e-5) and len(set(plain)) == 32
    patches = len(processor.image_processor(images=row["images"], return_tensors="pt")["pixel_values"])
    assert [(len(batch["input_ids"]), len(batch["pixel_values"])) for batch in shown] == [(32, patches)] * 2
    assert tokens_computed(reward_model, shown[1])[0] == patches


@pytest.mark.parametrize("collator", COLLATORS)
def test_workers_send_the_batch_that_the_process_would_make(collator, processor, image_pairs):
    dataset = Dataset.from_list(as_png(image_pairs), PREFERENCE_FEATURES)
    collator = collator(processor)
    batches = list(DataLoader(dataset, batch_size=6, collate_fn=collator, num_workers=2))
    assert len(batches) == 4
    for number, batch in enumerate(batches):
        expected = collator([dataset[i] for i in range(6 * number, 6 * number + 6)])
        assert batch.keys() == expected.keys() and len(batch["image_numbers"]) == 2 * len(batch["image_grid_thw"])
        for key, value in model_inputs(expected).items():
            assert torch.equal(batch[key], value), key


def test_numbers_do_not_change_the_order_of_module_calls(reward_model, processor, rows):
    """Under ZeRO-3 and FSDP2 each call gathers weights with the other ranks, which hold other rows."""
    collator = DataCollatorForVisionReward(processor)
    batches = [collator(chosen) for chosen in (rows, rows[:1], rows[:2], rows[2:3], rows[4:5], [rows[0], rows[4]])]
    share_prefixes(reward_model)
    orders = [modules_run(reward_model, batch) for batch in batches]
    assert all(order == orders[0] for order in orders) and len(orders[0]) > 50
    unshare_prefixes(reward_model)
    for batch in batches:
        assert modules_run(reward_model, batch) == modules_run(reward_model, repeated(batch))


def test_a_policy_generates_from_prompts_with_one_image(policy, processor):
    images = [noise(processor, 4, 2, 0)] * 2
    prompts = [[{"role": "user", "content": f"Which is larger? {i}"}] for i in range(2)]
    batch = encode_prompts(processor, prompts, [[image] for image in images], ["a", "b"])
    assert len(batch["image_grid_thw"]) == 2 and "image_numbers" not in batch
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    together = policy.generate(**batch, **settings)[:, -4:]
    for i in range(2):
        alone = encode_prompts(processor, prompts[i : i + 1], [images[:1]], ["a"])
        assert torch.equal(policy.generate(**alone, **settings)[0, -4:], together[i])


def test_things_are_told_apart_by_shape_and_content():
    one, other = torch.zeros(2, 8), torch.zeros(4, 4)
    same, more = one.clone(), torch.ones(2, 8)
    kept, numbers = distinct([other, one, same, one, more, other], lambda item: (item.shape, item.numpy()))
    assert [id(item) for item in kept] == [id(other), id(one), id(more)]
    assert numbers == [0, 1, 1, 1, 2, 0]
    assert distinct([], id) == ([], [])


def test_images_that_come_with_numbers_and_videos_without_are_compared(models, processor, rows):  # noqa: F811
    model = share_prefixes(models["reward"].float())
    batch = DataCollatorForVisionReward(processor)(rows)
    mixed = {**repeated(batch), **{key: batch[key] for key in ("pixel_values", "image_grid_thw", "image_numbers")}}
    assert tokens_computed(model, mixed) == tokens_computed(model, batch)
    with torch.no_grad():
        assert torch.equal(model(**mixed).logits, model(**batch).logits)


def test_frames_at_two_rates_are_there_once_and_stand_elsewhere_in_time(reward_model, processor):
    reward_model.score.weight.data.normal_()
    film, parts = frames(processor, 2, 8), [{"type": "video"}, {"type": "text", "text": "Which?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "The first."}]
    videos = [[{"frames": film, "fps": fps}] for fps in (2.0, 0.5)]
    batch = encode_conversations(processor, [turns] * 2, [[], []], ["a", "b"], videos=videos)
    assert batch["video_numbers"].tolist() == [0, 0] and len(batch["video_grid_thw"]) == 1
    assert "second_per_grid_ts" not in batch or batch["second_per_grid_ts"].unique().numel() == 2
    with torch.no_grad():
        plain, shared = reward_model(**batch).logits, share_prefixes(reward_model)(**batch).logits
        assert torch.equal(reward_model(**repeated(batch)).logits, shared)
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-5)
    assert (plain[0] - plain[1]).abs() > 1e-4


@pytest.mark.parametrize("collator", COLLATORS)
def test_a_model_that_knows_no_numbers_does_not_go_on(policy, collator, processor, image_pairs):
    batch = model_inputs(collator(processor)(image_pairs[:2]))
    with pytest.raises((ValueError, StopIteration)):
        policy(**batch)
    assert len(policy(**repeated(batch)).logits) == 4
