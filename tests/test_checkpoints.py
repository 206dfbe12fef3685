"""The layout of Skywork-VL-Reward-7B, made from a random model, against the computation on its model card."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from vl_reward import RewardScorer
from vl_reward.data.encoding import encode_conversations
from vl_reward.data.messages import as_messages


@pytest.fixture
def released(policy_path, tmp_path):
    shutil.copytree(policy_path, tmp_path / "released")
    generator = torch.Generator().manual_seed(0)
    head = {
        "v_head.summary.weight": torch.randn(1, 128, generator=generator),
        "v_head.summary.bias": torch.tensor([0.75]),
    }
    save_file(head, tmp_path / "released/value_head.safetensors")
    return tmp_path / "released", head


def test_scores_equal_the_value_head_on_the_last_token(released, policy, processor, mixed_pairs):
    path, head = released
    rows = mixed_pairs[:6]
    scores = RewardScorer.from_pretrained(str(path))(
        [row["prompt"] for row in rows], [row["chosen"] for row in rows], [row["images"] for row in rows]
    )
    batch = encode_conversations(
        processor,
        [as_messages(row["prompt"], row["chosen"]) for row in rows],
        [row["images"] for row in rows],
        ["row"] * 6,
    )
    with torch.no_grad():
        hidden = policy.model(**batch).last_hidden_state
    values = (hidden @ head["v_head.summary.weight"].T + head["v_head.summary.bias"]).squeeze(-1)
    expected = values.gather(1, batch["attention_mask"].sum(1, keepdim=True) - 1).squeeze(1)
    assert scores == pytest.approx(expected.tolist(), abs=1e-5)


def test_wrong_tensors_are_refused(released):
    path, head = released
    save_file({"summary.weight": head["v_head.summary.weight"]}, path / "value_head.safetensors")
    with pytest.raises(ValueError, match="holds .*summary.weight"):
        RewardScorer.from_pretrained(str(path))


def test_untrained_head_is_refused(released):
    path, head = released
    save_file({key: torch.zeros_like(value) for key, value in head.items()}, path / "value_head.safetensors")
    with pytest.raises(ValueError, match="never trained"):
        RewardScorer.from_pretrained(str(path))
