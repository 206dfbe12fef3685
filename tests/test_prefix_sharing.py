"""Prefix sharing against the plain computation: equal scores, losses and gradients, and fewer tokens computed."""

import copy
import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from PIL import Image
from test_mpo_trainer import make_trainer  # noqa: F401
from transformers import AutoModelForImageTextToText, AutoModelForSequenceClassification
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen3_vl import modeling_qwen3_vl

from vl_reward import DataCollatorForVisionReward, share_prefixes, unshare_prefixes
from vl_reward.models.families import family_of
from vl_reward.models.vision_reward_model import ScoreHead
from vl_reward.prefix_sharing import shared_forward
from vl_reward.prefix_sharing.packed_images import Visuals
from vl_reward.prefix_sharing.share_prefixes import shares_prefixes
from vl_reward.tiny.digits import compose


SIZES = [(2, 2), (2, 2), (4, 2), (3, 5)]  # in visual tokens; the first two differ in their pixels alone


@pytest.fixture(scope="session")
def images(processor):
    pixels = processor.image_processor.patch_size * processor.image_processor.merge_size
    return [
        Image.effect_noise((width * pixels, height * pixels), 80 + i).convert("RGB")
        for i, (width, height) in enumerate(SIZES)
    ]


@pytest.fixture(scope="session")
def models(policy_path):
    """A reward model and a policy, by name."""
    torch.manual_seed(0)
    return {
        "reward": AutoModelForSequenceClassification.from_pretrained(policy_path, dtype="float32"),
        "policy": AutoModelForImageTextToText.from_pretrained(policy_path, dtype="float32"),
    }


@pytest.fixture
def in_float64(monkeypatch):
    """transformers and the score head compute a few steps in float32 whatever the model's type. Here they do not."""

    def norm(self, states):
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def rotate(q, k, cos, sin):
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        half = modeling_qwen2_5_vl.rotate_half
        return q * cos + half(q) * sin, k * cos + half(k) * sin

    monkeypatch.setattr(modeling_qwen2_5_vl.Qwen2_5_VLRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_qwen3_vl.Qwen3VLTextRMSNorm, "forward", norm)
    for modeling in (modeling_qwen2_5_vl, modeling_qwen3_vl):
        monkeypatch.setattr(modeling, "apply_rotary_pos_emb_vision", rotate)
    monkeypatch.setattr(ScoreHead, "forward", torch.nn.Linear.forward)


def encode(processor, rows, images, padding_side="right"):
    """Rows of `(numbers of images, prompt, response)` as a batch."""
    texts = [
        "<|im_start|>user\n" + "<|vision_start|><|image_pad|><|vision_end|>" * len(numbers) + f"{prompt}<|im_end|>\n"
        f"<|im_start|>assistant\n{response}<|im_end|>\n"
        for numbers, prompt, response in rows
    ]
    pixels = [[images[number] for number in numbers] for numbers, _, _ in rows]
    return dict(
        processor(
            text=texts,
            images=pixels if any(pixels) else None,
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
        )
    )


def compute(model, batch):
    """
    What the model gives for the attended tokens, and the gradients of a loss that weighs each of them differently.
    """
    model.zero_grad()
    logits = model(**batch).logits
    if logits.ndim == 3:
        logits = logits[batch["attention_mask"].bool()]
    weights = torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype, device=logits.device).view_as(logits)
    (logits * weights).sum().backward()
    return logits.detach(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def assert_same(model, batch, tolerance):
    expected, expected_gradients = compute(unshare_prefixes(model), batch)
    outputs, gradients = compute(share_prefixes(model), batch)
    assert (outputs - expected).abs().max() <= tolerance * expected.abs().max()
    # Without an image the vision tower takes part with a blank one, to no effect.
    unseen = gradients.keys() - expected_gradients.keys()
    assert gradients.keys() >= expected_gradients.keys() and not any(gradients[name].any() for name in unseen)
    assert not unseen or ("pixel_values" not in batch and all(".visual." in name for name in unseen))
    largest = max(gradient.abs().max() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        # A gradient that is zero but for rounding, such as a key's bias', is measured by the largest one, whose last
        # digit it may have got.
        rounding = max(1e-4 * tolerance, torch.finfo(gradient.dtype).eps) * largest
        assert (gradients[name] - gradient).abs().max() <= max(tolerance * gradient.abs().max(), rounding), name


def tokens_computed(model, batch):
    """Tokens that pass the decoder, and patches that pass the vision tower."""
    counts = []
    backbone = model.model
    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs: counts.append((args + tuple(kwargs.values()))[0].shape[:-1].numel()),
            with_kwargs=True,
        )
        for module in (backbone.visual.blocks[0], backbone.language_model.layers[0])
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return counts


def modules_run(model, batch):
    """The modules with weights of their own, in the order of their calls, forward and backward."""
    order, hooks = [], []
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: order.append(name)))
            hooks.append(module.register_full_backward_hook(lambda *_, name=name: order.append(f"{name} backward")))
    model.train().zero_grad()
    logits = model(**batch).logits
    logits.float().pow(2).sum().backward()
    for hook in hooks:
        hook.remove()
    model.eval()
    return order


words = st.sampled_from(["What is the sum?", "What is the sum? Is it 4?", "4", "", "I see 4 and 5."])
prompts = st.tuples(st.lists(st.integers(0, len(SIZES) - 1), max_size=2), words)
groups = st.lists(
    st.tuples(prompts, st.lists(words, min_size=1, max_size=8)),
    min_size=1,
    max_size=3,
)


# The eager attention of transformers takes its softmax in float32.
@pytest.mark.parametrize(
    ("attn_implementation", "dtype", "tolerance"), [("sdpa", torch.float64, 1e-9), ("eager", torch.float32, 1e-4)]
)
@pytest.mark.parametrize("name", ["reward", "policy"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=groups, padding_side=st.sampled_from(["left", "right"]), order=st.randoms(use_true_random=False))
def test_any_batch(
    models, processor, images, in_float64, name, attn_implementation, dtype, tolerance, groups, padding_side, order
):
    rows = [(*prompt, response) for prompt, responses in groups for response in responses]
    order.shuffle(rows)
    model = models[name].to(dtype)
    unshare_prefixes(model).set_attn_implementation(attn_implementation)
    assert_same(model, encode(processor, rows, images, padding_side), tolerance)


@pytest.mark.parametrize("frozen", [True, False], ids=["tower frozen", "tower trained"])
@pytest.mark.parametrize("name", ["reward", "policy"])
def test_the_order_of_module_calls_does_not_depend_on_the_rows(models, processor, images, name, frozen):
    """Under ZeRO-3 and FSDP2 each call gathers weights with the other ranks, which hold other rows."""
    model = share_prefixes(models[name].float())
    model.model.visual.requires_grad_(not frozen)
    for projector in family_of(model.config).projectors:
        model.model.visual.get_submodule(projector).requires_grad_(True)
    shared, alone = ([0], "What is the sum?", "9"), ([2, 3], "Which is larger?", "I see 4 and 5.")
    text, other = ([], "Is 4 larger than 5?", "no"), ([], "What?", "I see 4 and 5. Answer: 9")
    batches = [[shared, (*shared[:2], "8")], [shared], [shared, alone], [text], [text, (*text[:2], "yes")]]
    batches += [[text, other], [shared, text], [alone, alone, text]]
    orders = [modules_run(model, encode(processor, rows, images, "right")) for rows in batches]
    blank = encode(processor, [text, other], images, "right")
    blank |= {"pixel_values": None, "image_grid_thw": None}
    for rows, order in zip([*batches, "blank"], [*orders, modules_run(model, blank)], strict=True):
        assert order == orders[0], rows
    assert orders[0][0].startswith("model.visual.patch_embed") and len(orders[0]) > 50
    for parameter in models[name].parameters():
        parameter.requires_grad_(True)


PAIRS = [
    ([0], "What is the sum?", "I see 4 and 5. Answer: 9"),
    ([2, 3], "Which is larger?", "4"),
    ([], "Is 4 larger than 5?", "no"),
    ([0], "What is the sum?", "9"),
    ([2, 3], "Which is larger?", "I see 4 and 5. Answer: 5"),
    ([], "Is 4 larger than 5?", "yes, it is"),
]


@pytest.fixture
def pairs(processor, images):
    return encode(processor, PAIRS, images)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_positions_are_those_of_transformers(models, processor, images, padding_side):
    backbone = models["reward"].model
    rows = [([0, 3], "sum?", "4"), ([], "is it?", "5, and so on"), ([2], "", "I see"), ([3], "sum?", "4")]
    batch = encode(processor, rows, images, padding_side)
    attended = batch["attention_mask"].bool()
    expected, _ = backbone.get_rope_index(
        batch["input_ids"], batch["mm_token_type_ids"], batch["image_grid_thw"], attention_mask=attended
    )
    visuals = Visuals.of_batch(batch)
    positions = visuals.positions(backbone.config, batch["input_ids"], attended)
    assert visuals.numbers == [0, 1, 2, 1] and torch.equal(visuals.grids, batch["image_grid_thw"][:3])
    assert torch.equal(positions[:, attended], expected[:, attended])


@pytest.mark.parametrize("name", ["reward", "policy"])
def test_float32(models, pairs, name):
    assert_same(models[name].float(), pairs, 1e-4)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(policy, pairs, use_reentrant):
    policy.train().gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    policy.enable_input_require_grads()
    assert_same(policy, pairs, 1e-4)


def test_lora(policy, pairs):
    model = get_peft_model(policy, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    assert_same(model, pairs, 1e-4)
    assert share_prefixes(model) is model


def test_images_without_m_rope_positions(models, pairs, family):
    """Qwen3-VL refuses them, shared or not."""
    pairs.pop("mm_token_type_ids")
    if family == "qwen2_5_vl":
        return assert_same(models["policy"].float(), pairs, 1e-4)
    with pytest.raises(ValueError, match="`mm_token_type_ids` is missing"):
        share_prefixes(models["policy"].float())(**pairs)


def test_no_attention_mask(models, processor, images):
    batch = encode(processor, [([1], "4", "5"), ([1], "4", "4")], images)
    assert batch["attention_mask"].all()
    attention_mask = batch.pop("attention_mask")
    model = models["reward"].float()
    with torch.no_grad():
        expected = unshare_prefixes(model)(**batch).logits
        assert torch.allclose(share_prefixes(model)(**batch).logits, expected, atol=1e-5)
        assert torch.allclose(model(**batch, attention_mask=attention_mask).logits, expected, atol=1e-5)


def test_each_token_and_each_image_is_computed_once(models, pairs, processor, images):
    model = models["reward"].float()
    patches = {size: 4 * size[0] * size[1] for size in SIZES}
    rows = int(pairs["attention_mask"].numel())
    assert tokens_computed(unshare_prefixes(model), pairs) == [len(pairs["pixel_values"]), rows]

    vision, decoder = tokens_computed(share_prefixes(model), pairs)
    assert vision == patches[SIZES[0]] + patches[SIZES[2]] + patches[SIZES[3]] == len(pairs["pixel_values"]) // 2

    # Prefixes as sets: a token is new if no row before had the same tokens and images up to it.
    distinct = {
        (tuple(numbers), tuple(encode(processor, [(numbers, prompt, response)], images)["input_ids"][0][:end].tolist()))
        for numbers, prompt, response in PAIRS
        for end in range(1, 1000)
    }
    lengths = [int(encode(processor, [row], images)["attention_mask"].sum()) for row in PAIRS]
    assert max(lengths) < decoder < sum(lengths) < rows
    assert decoder <= len(distinct)


def test_a_batch_that_shares_nothing_takes_the_plain_path(models, processor, images):
    batch = encode(processor, [([2], "4", "5")], images)
    model = models["reward"].float()
    with torch.no_grad():
        expected = unshare_prefixes(model)(**batch).logits
        assert torch.equal(share_prefixes(model)(**batch).logits, expected)


def test_an_image_is_not_taken_for_another_one(models, processor, images):
    batch = encode(processor, [([0], "4", "5"), ([1], "4", "5"), ([0], "4", "5")], images)
    with torch.no_grad():
        scores = share_prefixes(models["reward"].float())(**batch).logits.squeeze(-1)
    assert scores[0] == scores[2] != scores[1]


def test_generation_is_left_as_it_is(models, processor, images):
    model = models["policy"].float()
    batch = encode(processor, [([0], "4", "5"), ([0], "4", "6")], images, padding_side="left")
    settings = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    expected = unshare_prefixes(model).generate(**batch, **settings)
    outputs = share_prefixes(model).generate(**batch, **settings)
    assert torch.equal(outputs.sequences, expected.sequences)
    assert torch.equal(torch.stack(outputs.logits), torch.stack(expected.logits))


def test_hidden_states_are_those_of_rows(models, pairs):
    model = share_prefixes(models["policy"].float())
    with torch.no_grad():
        outputs = model(**pairs, output_hidden_states=True)
    assert outputs.hidden_states[0].shape[:2] == pairs["input_ids"].shape


def test_sharing_twice_is_sharing_once_and_unsharing_restores(policy):
    before = vars(policy.model).get("forward"), policy.model.language_model.config._attn_implementation
    forward = share_prefixes(policy).model.forward
    assert share_prefixes(policy).model.forward is forward
    assert policy.model.language_model.config._attn_implementation == "prefix_sharing|sdpa"
    unshare_prefixes(policy)
    assert policy.model.forward == type(policy.model).forward.__get__(policy.model)
    assert before[1] == policy.model.language_model.config._attn_implementation == "sdpa"
    unshare_prefixes(policy)


def test_a_copy_runs_its_own_weights(models, pairs):
    model = share_prefixes(models["reward"].float())
    twin = copy.deepcopy(model)
    torch.nn.init.normal_(twin.model.language_model.layers[0].mlp.down_proj.weight)
    with torch.no_grad():
        scores, twin_scores = model(**pairs).logits, twin(**pairs).logits
        assert not torch.allclose(scores, twin_scores)
        assert torch.allclose(twin_scores, unshare_prefixes(twin)(**pairs).logits, rtol=1e-4)


def test_saving_says_nothing_of_sharing(policy, tmp_path):
    share_prefixes(policy).save_pretrained(tmp_path)
    assert "prefix_sharing" not in (tmp_path / "config.json").read_text()


def test_other_attention_stays_plain_and_says_why(policy, pairs, caplog, monkeypatch):
    policy.model.language_model.config._attn_implementation = "flex_attention"
    with caplog.at_level(logging.WARNING):
        share_prefixes(policy)
    assert "not shared with attn_implementation 'flex_attention'" in caplog.text
    assert policy.model.language_model.config._attn_implementation == "flex_attention"
    # Attention aside, the modules run in the order that sharing has.
    policy.model.language_model.config._attn_implementation = "sdpa"
    monkeypatch.setattr(shared_forward, "pack", None)
    with torch.no_grad():
        logits = policy(**pairs).logits
    assert torch.equal(logits, unshare_prefixes(policy)(**pairs).logits)


def test_a_decoder_that_cannot_branch_stays_plain_and_says_why(policy, pairs, caplog, monkeypatch):
    """As one with recurrent layers, whose state goes from token to token."""
    monkeypatch.setattr(family_of(policy.config), "why_not_shared", lambda text_config: "recurrent layers")
    with caplog.at_level(logging.WARNING):
        share_prefixes(policy)
    assert caplog.text.count("Prefixes are not shared: this decoder has recurrent layers") == 1
    assert not shares_prefixes(policy)
    with torch.no_grad():
        logits = policy(**pairs).logits
    assert torch.equal(logits, unshare_prefixes(policy)(**pairs).logits)


def test_transformers_has_no_flex_attention_for_this_model(policy):
    """Once it has, packed rows can be attended to with a block mask, without gathering keys."""
    with pytest.raises(ValueError, match="does not support an attention implementation through torch's flex_attention"):
        policy.set_attn_implementation("flex_attention")


def test_a_model_without_the_backbone_is_refused():
    with pytest.raises(ValueError, match="this Linear holds no `Qwen2_5_VLModel` or `Qwen3VLModel`"):
        share_prefixes(torch.nn.Linear(2, 2))


def test_a_frozen_vision_tower_keeps_no_activations(reward_model, processor, image_pairs):
    tower = reward_model.model.visual.requires_grad_(False)
    projectors = [tower.get_submodule(name).requires_grad_(True) for name in reward_model.projectors]
    share_prefixes(reward_model.train())
    with_graph = []
    for block in tower.blocks:
        block.register_forward_hook(lambda module, args, output: with_graph.append(output.requires_grad))
    reward_model(**DataCollatorForVisionReward(processor)(image_pairs[:2])).logits.sum().backward()
    assert with_graph == [False] * len(tower.blocks)
    trained = [weight for projector in projectors for weight in projector.parameters()]
    assert len(trained) > 4 and all(weight.grad.abs().max() > 0 for weight in trained)


def test_a_frozen_vision_tower_keeps_no_activations_under_lora_with_checkpointing(policy, pairs, family):
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    policy.enable_input_require_grads()
    model = get_peft_model(policy, LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False))
    assert_same(model.train(), pairs, 1e-4)
    with_graph = []
    for block in policy.model.visual.blocks:
        block.register_forward_hook(lambda module, args, output: with_graph.append(output.requires_grad))
    compute(unshare_prefixes(model), pairs)
    assert with_graph == [family == "qwen2_5_vl"] * 2  # what transformers does by itself
    with_graph.clear()
    compute(share_prefixes(model), pairs)
    assert with_graph == [False, False]


def test_an_unattended_image_keeps_the_projector_in_the_graph(reward_model, processor, text_pairs):
    batch = DataCollatorForVisionReward(processor)(text_pairs)
    assert tokens_computed(share_prefixes(reward_model), batch)[1] < batch["attention_mask"].sum()
    _, gradients = compute(reward_model, batch)
    for projector in reward_model.projectors:
        of_it = [gradient for name, gradient in gradients.items() if f".{projector}." in name]
        assert len(of_it) > 3 and not any(gradient.any() for gradient in of_it)


def test_mpo_trains_to_the_same_weights(make_trainer):  # noqa: F811
    weights = []
    for share in (False, True):
        trainer = make_trainer(max_steps=2, learning_rate=1e-4)
        if share:
            share_prefixes(trainer.model), share_prefixes(trainer.ref_model)
        trainer.train()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        weights.append((losses, trainer.model.state_dict()))
    assert weights[1][0] == pytest.approx(weights[0][0], rel=1e-4)
    for name, weight in weights[0][1].items():
        assert torch.allclose(weights[1][1][name], weight, atol=3e-5), name


def test_equal_images_of_different_questions_are_encoded_once(models, processor):
    picture = next(compose("sft", 0))["images"]
    batch = encode(processor, [(range(len(picture)), text, "4") for text in ("sum?", "larger?", "first?")], picture)
    vision, _ = tokens_computed(share_prefixes(models["reward"].float()), batch)
    assert vision == len(batch["pixel_values"]) // 3
