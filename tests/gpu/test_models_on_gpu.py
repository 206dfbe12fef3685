"""
On a GPU what the other tests show on a CPU: shared prefixes under its attention kernels and in bfloat16, TRL's Triton
kernel, scores and samples.
"""

import copy

import pytest
import torch
from test_prefix_sharing import PAIRS, assert_same, compute, encode, images, models  # noqa: F401

from vl_reward import RewardScorer, share_prefixes, unshare_prefixes
from vl_reward.prefix_sharing.share_prefixes import shares_prefixes
from vl_reward.prefix_sharing.token_log_probs import TokenLogProbs, token_log_probs


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(autouse=True)
def whole_float32():
    """By default the convolution of the patches takes TF32, which has 11 bits."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


families = pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"], indirect=True, scope="session")


def on_gpu(batch):
    return {key: value.cuda() for key, value in batch.items()}


@families
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("name", ["reward", "policy"])
def test_shared_prefixes_in_float32(models, processor, images, name, padding_side, attention):  # noqa: F811
    model = models[name].float().cuda()
    unshare_prefixes(model).set_attn_implementation(attention)
    assert_same(model, on_gpu(encode(processor, PAIRS, images, padding_side)), 1e-4)


def apart(found, expected):
    """The norm of the difference between tensors, relative to the norm of what is expected."""
    found, expected = (torch.cat([tensor.double().flatten() for tensor in tensors]) for tensors in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


@families
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("name", ["reward", "policy"])
def test_shared_prefixes_in_bfloat16(models, processor, images, name, padding_side, attention):  # noqa: F811
    """They are as near to float32 as rows that are computed separately."""
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="PYTHONPATH=tests/gpu/flash_attn_of_torch, or install it")
    model, batch = models[name].float().cuda(), on_gpu(encode(processor, PAIRS, images, padding_side))
    unshare_prefixes(model).set_attn_implementation("sdpa")
    outputs, gradients = compute(model, batch)
    rounded = copy.deepcopy(model).bfloat16()
    rounded.set_attn_implementation(attention)
    errors = []
    for share in (unshare_prefixes, share_prefixes):
        assert shares_prefixes(share(rounded)) == (share is share_prefixes)
        found, found_gradients = compute(rounded, batch)
        names = gradients.keys()
        errors.append((apart([found], [outputs]), apart(map(found_gradients.get, names), map(gradients.get, names))))
    for plain, shared in zip(*errors, strict=True):
        assert 0 < shared < 3 * plain < 0.2, (
            errors
        )  # a reward model has six outputs, whose rounding is a matter of luck


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_by_trls_kernel(dtype):
    """TRL's Triton kernel gives what this project's function for a CPU gives, with the gradients of both factors."""
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(rows, 256, generator=generator) / 4 for rows in (700, 40_000))
    states, weight = states.to(dtype).float(), weight.to(dtype).float()
    targets, factors = torch.randint(40_000, (700,), generator=generator), torch.randn(700, generator=generator)
    found = {}
    for device, function in (("cpu", TokenLogProbs.apply), ("cuda", token_log_probs)):
        kept = dtype if device == "cuda" else torch.float32
        inputs = [tensor.detach().clone().to(device, kept).requires_grad_() for tensor in (states, weight)]
        log_probs = function(*inputs, targets.to(device))
        (log_probs * factors.to(device)).sum().backward()
        found[device] = [tensor.cpu() for tensor in (log_probs.detach(), inputs[0].grad, inputs[1].grad)]
    for expected, actual in zip(found["cpu"], found["cuda"], strict=True):
        assert apart([actual], [expected]) < (1e-4 if dtype == torch.float32 else 1e-2)


def test_scores(image_pairs, reward_model, processor, tmp_path):
    """Scores in float32 are the CPU's; in bfloat16 they are near."""
    reward_model.score.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    reward_model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    rows = {
        "prompts": [row["prompt"] for row in image_pairs for _ in range(4)],
        "completions": [f"I see {number}. Answer: {number}" for _ in image_pairs for number in range(4)],
        "images": [row["images"] for row in image_pairs for _ in range(4)],
    }
    scorers = {
        (device, dtype): RewardScorer.from_pretrained(str(tmp_path), dtype=dtype, device_map=device)
        for device, dtype in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16"))
    }
    scores = {name: torch.tensor(scorer(**rows)) for name, scorer in scorers.items()}
    expected = scores["cpu", "float32"]
    assert expected.std() > 0.1
    torch.testing.assert_close(scores["cuda", "float32"], expected, rtol=0, atol=1e-4)
    assert (scores["cuda", "bfloat16"] - expected).abs().max() < 0.2 * expected.std()
