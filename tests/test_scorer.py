"""The scorer: order, batches, forms of input, and refusals."""

import threading

import pytest
import torch
from trl.data_utils import prepare_multimodal_messages

from vl_reward import (
    DataCollatorForVisionReward,
    RewardScorer,
    share_prefixes,
    unshare_prefixes,
)
from vl_reward.inference import scorer as scorer_module


@pytest.fixture
def scorer(reward_model, processor):
    return RewardScorer(share_prefixes(reward_model), processor, max_batch_tokens=200)


def columns(rows, side="chosen"):
    return [row["prompt"] for row in rows], [row[side] for row in rows], [row["images"] for row in rows]


def test_scores_come_back_in_the_callers_order(scorer, reward_model, processor, mixed_pairs):
    scores = scorer(*columns(mixed_pairs))
    with torch.no_grad():
        batch = DataCollatorForVisionReward(processor)(mixed_pairs)
        expected = reward_model(**batch).logits.squeeze(-1)[: len(mixed_pairs)].tolist()
    assert scores == pytest.approx(expected, abs=5e-6)
    assert len({round(score, 6) for score in scores}) == len(scores)


@pytest.mark.parametrize("max_batch_tokens", [1, 150, 100_000])
def test_scores_do_not_depend_on_the_batch(reward_model, processor, mixed_pairs, max_batch_tokens):
    prompts, completions, images = [column * 2 for column in columns(mixed_pairs)]
    completions[len(mixed_pairs) :] = [row["rejected"] for row in mixed_pairs]
    alone = [
        RewardScorer(reward_model, processor)(*([value] for value in row))[0]
        for row in zip(prompts, completions, images, strict=True)
    ]
    scorer = RewardScorer(share_prefixes(reward_model), processor, max_batch_tokens)
    assert scorer(prompts, completions, images) == pytest.approx(alone, abs=5e-6)


def test_the_completions_of_a_prompt_are_scored_together_within_the_budget(reward_model, processor, image_pairs):
    rows = image_pairs[:3]
    completions = [row[side] for side in ("chosen", "rejected") for row in rows]
    prompts, images = [row["prompt"] for row in rows] * 2, [row["images"] for row in rows] * 2
    batches = []
    reward_model.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(kwargs["input_ids"])), with_kwargs=True
    )

    def batch_sizes(max_batch_tokens):
        batches.clear()
        RewardScorer(reward_model, processor, max_batch_tokens)(prompts, completions, images)
        return list(batches)

    share_prefixes(reward_model)
    # A prompt has about 10 tokens of text and 8 of images, a completion about 12.
    assert batch_sizes(1) == [1] * 6
    assert batch_sizes(60) == [2, 2, 2]
    assert batch_sizes(100) == [4, 2]
    assert batch_sizes(16384) == [6]
    # Where nothing is shared, a prompt is computed with each of its completions, and counts so.
    unshare_prefixes(reward_model)
    assert batch_sizes(100) == [3, 3] and batch_sizes(16384) == [6]


def test_strings_and_messages_score_alike(scorer, image_pairs, tmp_path):
    prompts, completions, images = columns(image_pairs[:3])
    reference = scorer(prompts, completions, images)
    texts = scorer([prompt[0]["content"] for prompt in prompts], [c[0]["content"] for c in completions], images)
    assert texts == reference
    for i, row in enumerate(images):
        for k, image in enumerate(row):
            image.save(tmp_path / f"{i}_{k}.png")
    paths = [[str(tmp_path / f"{i}_{k}.png") for k in range(len(row))] for i, row in enumerate(images)]
    assert scorer(prompts, completions, paths) == reference


def test_prompts_whose_placeholders_are_filled_score_alike(scorer, mixed_pairs):
    """As GRPOTrainer hands them over, beside the column of images or without it."""
    prompts, completions, images = columns(mixed_pairs)
    filled = [prepare_multimodal_messages(*row) for row in zip(prompts, images, strict=True)]
    expected = scorer(prompts, completions, images)
    assert scorer(filled, completions, images) == expected
    assert scorer(filled, completions) == expected
    swapped = [images[2], images[1], images[0], *images[3:]]
    assert [len(row) for row in images[:3]] == [1, 0, 2]
    with pytest.raises(ValueError, match="completion [02]: Number of images provided"):
        scorer(filled, completions, swapped)


def test_text_needs_no_images(scorer, text_pairs):
    prompts, completions, images = columns(text_pairs)
    assert scorer(prompts, completions) == scorer(prompts, completions, images)
    assert scorer([], []) == []


def test_extra_columns_are_ignored_as_trl_passes_them(scorer, text_pairs):
    prompts, completions, _ = columns(text_pairs[:2])
    assert len(scorer(prompts=prompts, completions=completions, answer=["1", "2"], trainer_state=None)) == 2


def test_lists_of_different_lengths_are_refused(scorer):
    with pytest.raises(ValueError):
        scorer(["one", "two"], ["one"])


def test_bad_completion_is_named(scorer):
    with pytest.raises(ValueError, match="completion 1: the answer is empty"):
        scorer(["a", "b"], ["fine", ""])


def test_checkpoint_without_a_trained_head_is_refused(policy_path):
    with pytest.raises(ValueError, match="holds no trained reward head"):
        RewardScorer.from_pretrained(policy_path)


def test_round_trip(scorer, mixed_pairs, tmp_path):
    scorer.model.save_pretrained(tmp_path)
    scorer.processor.save_pretrained(tmp_path)
    again = RewardScorer.from_pretrained(str(tmp_path), max_batch_tokens=200)
    assert again(*columns(mixed_pairs)) == scorer(*columns(mixed_pairs))


def test_a_revision_is_that_of_model_head_and_processor(monkeypatch, policy_path):
    seen = {}

    def load(name, result):
        def from_pretrained(path, *args, **kwargs):
            seen[name] = kwargs.get("revision", *args)
            return result

        return from_pretrained

    loaded = load("model", (None, {"missing_keys": ["score.weight"]}))
    monkeypatch.setattr(scorer_module.AutoModelForSequenceClassification, "from_pretrained", loaded)
    monkeypatch.setattr(scorer_module, "load_value_head", load("head", None))
    with pytest.raises(ValueError, match="no trained reward head"):
        RewardScorer.from_pretrained("owner/name", revision="v2")
    assert seen == {"model": "v2", "head": "v2"}


def test_every_response_has_a_score_or_is_named(scorer):
    rows = [{"id": "a", "prompt": "What?", "images": None, "responses": ["A cat.", "A dog."]}]
    assert scorer.score_responses(rows) == scorer.score_candidates(rows)
    rows[0]["responses"] = ["A cat.", " "]
    with pytest.raises(ValueError, match="response 1 of row a: the answer is empty"):
        scorer.score_responses(rows)
    assert scorer.score_candidates(rows)[0][1] is None


def test_the_next_batch_is_made_while_the_model_computes(scorer, image_pairs, monkeypatch):
    """Each forward pass but the last waits until the next batch is on its way: without a thread, for ever."""
    encode, forward, begun, passes = scorer_module.encode_conversations, scorer.model.forward, [], []
    started = threading.Condition()

    def encoding(*args, **kwargs):
        with started:
            begun.append(args)
            started.notify()
        return encode(*args, **kwargs)

    def waiting(**batch):
        passes.append(batch)
        with started:
            assert started.wait_for(lambda: len(begun) > len(passes) or len(passes) == len(image_pairs), timeout=20)
        return forward(**batch)

    scorer.max_batch_tokens = 1
    expected = scorer(*columns(image_pairs))
    monkeypatch.setattr(scorer_module, "encode_conversations", encoding)
    monkeypatch.setattr(scorer.model, "forward", waiting)
    assert scorer(*columns(image_pairs)) == expected
    assert len(begun) == len(passes) == len(image_pairs)


@pytest.mark.parametrize("error", [StopIteration, ValueError], ids=lambda error: error.__name__)
def test_what_the_thread_raises_ends_the_call(scorer, image_pairs, monkeypatch, error):
    encode = scorer_module.encode_conversations

    def encoding(processor, conversations, images, names, *args):
        if names == ["completion 3"]:
            raise error("completion 3 is broken")
        return encode(processor, conversations, images, names, *args)

    scorer.max_batch_tokens = 1
    monkeypatch.setattr(scorer_module, "encode_conversations", encoding)
    with pytest.raises((RuntimeError, ValueError)) as raised:
        scorer(*columns(image_pairs))
    assert "completion 3 is broken" in str(raised.value.__cause__ or raised.value)
