"""Log-probabilities of responses against `log_softmax` of the whole logits: equal, with less computed and kept."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from test_mpo_trainer import mpo_config, mpo_loss
from test_mpo_trainer import token_log_probs as plain_log_probs
from transformers import Qwen2_5_VLForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from vl_reward import MPOTrainer, share_prefixes
from vl_reward.memory.live_tensors import LiveTensors
from vl_reward.models.repeated_visuals import repeated
from vl_reward.prefix_sharing import token_log_probs
from vl_reward.prefix_sharing.token_log_probs import TokenLogProbs, add_token_log_probs
from vl_reward.tiny.preferences import PREFERENCE_FEATURES


def plain(states, weight, targets):
    return (states @ weight.T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kept", [0, 1000, 2**27], ids=["computed again", "half kept", "kept"])
@pytest.mark.parametrize("trained", ["both", "states", "weight"])
@pytest.mark.parametrize(("rows", "columns"), [(7, 16), (64, 1000)], ids=["many tiles", "one tile"])
def test_values_and_gradients(monkeypatch, dtype, tolerance, kept, trained, rows, columns):
    """20 tokens, 100 words, and logits of up to some 100, which exponentiate to more than there are numbers for."""
    for name, value in {"ROWS": rows, "COLUMNS": columns, "KEPT": kept}.items():
        monkeypatch.setattr(token_log_probs, name, value)
    generator = torch.Generator().manual_seed(0)
    states, weight = (5 * torch.randn(n, 12, generator=generator, dtype=dtype) for n in (20, 100))
    states.requires_grad_(trained != "weight")
    weight.requires_grad_(trained != "states")
    targets = torch.randint(100, (20,), generator=generator)
    targets[3] = targets[4]  # a word's gradient of two tokens
    factors = torch.randn(20, generator=generator, dtype=dtype)
    found = {}
    for function in (plain, TokenLogProbs.apply):
        states.grad = weight.grad = None
        log_probs = function(states, weight, targets)
        (log_probs * factors).sum().backward()
        found[function] = log_probs.detach(), states.grad, weight.grad
    assert found[plain][0].abs().max() > 100
    for expected, actual in zip(*found.values(), strict=True):
        assert (actual is None) == (expected is None)
        if expected is not None:
            assert actual.dtype == dtype
            assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_under_autocast_sums_are_in_float32():
    states, weight = torch.randn(6, 32, requires_grad=True), torch.randn(5000, 32, requires_grad=True)
    targets = torch.arange(6)
    with torch.autocast("cpu", torch.bfloat16):
        log_probs = TokenLogProbs.apply(states, weight, targets)
    assert log_probs.dtype == torch.float32
    log_probs.sum().backward()
    rounded = [tensor.detach().bfloat16().float().requires_grad_() for tensor in (states, weight)]
    expected = plain(*rounded, targets)
    expected.sum().backward()
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=0.1)  # a logit of 20 in bfloat16 is off by 0.06
    for tensor, other in zip((states, weight), rounded, strict=True):
        assert tensor.grad.dtype == torch.float32
        torch.testing.assert_close(tensor.grad, other.grad, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kept", [0, 2 * 10**7, 2**27], ids=["computed again", "half kept", "kept"])
def test_memory(monkeypatch, kept):
    """2,000 tokens of 20,000 words: the logits are 160 MB. Gradients of states and weight are 5.6 MB."""
    monkeypatch.setattr(token_log_probs, "KEPT", kept)
    states, weight = torch.randn(2000, 64, requires_grad=True), torch.randn(20_000, 64, requires_grad=True)
    with LiveTensors(torch.nn.Linear(1, 1)) as live:
        TokenLogProbs.apply(states, weight, torch.arange(2000)).sum().backward()
    tile, of_logits = 4 * token_log_probs.ROWS * token_log_probs.COLUMNS, 4 * min(kept, 2000 * 20_000)
    assert of_logits - tile < sum(live.peak()) < of_logits + 3 * tile + 4 * 5.7e6


def test_on_a_gpu_the_kernel_is_trls(monkeypatch):
    calls = []

    class Kernel:
        @staticmethod
        def apply(states, weight, bias, targets, temperature, columns, softcapping, scale, outputs):
            calls.append((bias, temperature, columns, softcapping, scale, outputs))
            return states.sum(1), None, None, None, None

    monkeypatch.setattr(token_log_probs, "ChunkedLogProbFunction", Kernel)
    states, weight = torch.ones(3, 4, device="meta"), torch.ones(9, 4, device="meta")
    assert token_log_probs.token_log_probs(states, weight, torch.ones(3, dtype=int, device="meta")).shape == (3,)
    assert calls == [(None, 1.0, 32768, None, 1.0, ("log_probs",))]


@pytest.fixture
def trainer(policy_path, processor, image_pairs, tmp_path):
    def build(dtype="float32", share=True, peft_config=None, path=policy_path, **changes):
        def load():
            loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=dtype)
            return share_prefixes(loaded) if share else loaded

        return MPOTrainer(
            model=load(),
            ref_model=None if peft_config else load(),
            args=mpo_config(tmp_path / "out", **changes),
            train_dataset=Dataset.from_list(image_pairs[:4], PREFERENCE_FEATURES),
            processing_class=processor,
            peft_config=peft_config,
        )

    return build


def in_float64(batch):
    return {key: value.double() if key == "pixel_values" else value for key, value in batch.items()}


@pytest.fixture
def projected(monkeypatch):
    """The numbers of tokens that pass the head, call by call."""
    counts, apply = [], TokenLogProbs.apply
    monkeypatch.setattr(
        TokenLogProbs, "apply", lambda *arguments: (counts.append(len(arguments[2])), apply(*arguments))[1]
    )
    return counts


@pytest.mark.parametrize("share", [True, False], ids=["shared", "plain"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_loss_and_gradients_of_mpo_in_float64(trainer, config, image_pairs, tmp_path, share, tied):
    """All of them, to 1e-9, where policy and reference differ."""
    config = copy.deepcopy(config)
    config.tie_word_embeddings = tied
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path / "policy")
    trainer = trainer("float64", share, path=tmp_path / "policy")
    for parameter in trainer.model.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    batch = in_float64(trainer.data_collator(image_pairs[:4]))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    with torch.no_grad():
        ref_tokens = plain_log_probs(trainer.ref_model, batch)
    expected, _ = mpo_loss(plain_log_probs(trainer.model, batch), ref_tokens, 0.0)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in trainer.model.named_parameters():
        assert (gradients[name] - parameter.grad).abs().max() <= 1e-9 * largest, name
    assert ("lm_head.weight" in gradients) != tied


def test_what_responses_share_passes_the_head_once_and_prompts_never(trainer, image_pairs, projected):
    trainer = trainer()
    rows = [image_pairs[0], {**image_pairs[0], "id": "again"}]
    batch = trainer.data_collator(rows)
    chosen, rejected = (batch["input_ids"][i][batch["completion_mask"][i].bool()].tolist() for i in (0, 2))
    common = next(i for i, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1])
    assert common > 2
    trainer.compute_loss(trainer.model, batch)
    assert projected == [len(chosen) + len(rejected) - common] * 2  # by the reference, and by the policy


def test_log_probs_are_those_of_trl(policy, processor, trainer, image_pairs):
    """Of a model that TRL prepared, before and after; whatever rows have in common."""
    add_fused_lm_head(policy)
    batch = trainer().data_collator(image_pairs[:4])
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    batch.pop("id")
    with torch.no_grad():
        expected = policy(**repeated(batch), labels=labels, fused_lm_head=True).log_probs
        add_token_log_probs(policy)
        for model in (policy, share_prefixes(policy)):
            outputs = model(**batch, labels=labels, fused_lm_head=True)
            torch.testing.assert_close(outputs.log_probs, expected, rtol=1e-5, atol=1e-5)
            assert outputs.entropy is None
        # Otherwise the model is what it was.
        assert model(**batch, labels=labels).loss.ndim == 0
        assert model(**batch).logits.shape == (*labels.shape, policy.config.text_config.vocab_size)


def test_a_head_that_is_trained_beside_a_lora(trainer, image_pairs):
    """PEFT puts a copy of the head in its place, and the reference has the one that was loaded."""
    lora = LoraConfig("CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    trainer = trainer("float64", peft_config=lora)
    head = trainer.model.get_base_model().get_output_embeddings()
    head.weight.data += 0.01 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(1))
    batch = in_float64(trainer.data_collator(image_pairs[:4]))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradient, trainer.model.base_model.model.lm_head.weight.grad = head.weight.grad.clone(), None
    with torch.no_grad(), trainer.model.disable_adapter():
        ref_tokens = plain_log_probs(trainer.model, batch)
    expected, _ = mpo_loss(plain_log_probs(trainer.model, batch), ref_tokens, 0.0)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert trainer._metrics["train"]["rewards/chosen"][0] != 0
    torch.testing.assert_close(gradient, head.weight.grad, rtol=1e-9, atol=1e-12)


def test_metrics_over_the_vocabulary_are_not_logged(trainer):
    trainer = trainer(max_steps=1)
    trainer.train()
    keys = trainer.state.log_history[0].keys()
    assert {"loss", "sft_loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "reward_shift"} <= keys
    assert not keys & {"entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy"}
