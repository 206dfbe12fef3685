"""The scorer: order, batches, forms of input, and refusals."""

import pytest
import torch

from vl_reward import DataCollatorForVisionReward, RewardScorer


@pytest.fixture
def scorer(reward_model, processor):
    return RewardScorer(reward_model, processor, batch_size=4)


def columns(rows, side="chosen"):
    return [row["prompt"] for row in rows], [row[side] for row in rows], [row["images"] for row in rows]


def test_scores_come_back_in_the_callers_order(scorer, reward_model, processor, mixed_pairs):
    scores = scorer(*columns(mixed_pairs))
    with torch.no_grad():
        batch = DataCollatorForVisionReward(processor)(mixed_pairs)
        expected = reward_model(**batch).logits.squeeze(-1)[: len(mixed_pairs)].tolist()
    assert scores == pytest.approx(expected, abs=5e-6)
    assert len({round(score, 6) for score in scores}) == len(scores)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_do_not_depend_on_the_batch_size(reward_model, processor, mixed_pairs, batch_size):
    reference = RewardScorer(reward_model, processor, batch_size=7)(*columns(mixed_pairs))
    scores = RewardScorer(reward_model, processor, batch_size=batch_size)(*columns(mixed_pairs))
    assert scores == pytest.approx(reference, abs=5e-6)


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
    again = RewardScorer.from_pretrained(str(tmp_path), batch_size=4)
    assert again(*columns(mixed_pairs)) == scorer(*columns(mixed_pairs))
