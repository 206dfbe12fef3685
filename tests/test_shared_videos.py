"""Prefix sharing with videos against the plain computation: equal scores, losses and gradients, positions in time."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_prefix_sharing import assert_same, in_float64, models, modules_run, tokens_computed  # noqa: F401
from transformers.video_utils import VideoMetadata

from vl_reward import share_prefixes, unshare_prefixes
from vl_reward.models.families import family_of
from vl_reward.prefix_sharing import shared_forward
from vl_reward.prefix_sharing.packed_images import Visuals


# Frames, width and height in visual tokens, frames per second; the first two differ in their pixels alone, the third is
# the first one at another rate, and the fourth lasts so long that its steps in time are longer than its sides.
FILMS = [(4, 2, 2, 2.0), (4, 2, 2, 2.0), (4, 2, 2, 5.0), (6, 1, 3, 0.3), (2, 3, 2, 24.0)]
SIZES = [(2, 2), (3, 1)]


@pytest.fixture(scope="session")
def shown(processor):
    """Images, and videos with what was sampled of them, by names such as `i0` and `v3`."""
    side = processor.image_processor.patch_size * processor.image_processor.merge_size
    made = {
        f"i{i}": Image.effect_noise((width * side, height * side), 80 + i).convert("RGB")
        for i, (width, height) in enumerate(SIZES)
    }
    for i, (number, width, height, fps) in enumerate(FILMS):
        torch.manual_seed(i)
        frames = torch.randint(256, (number, 3, height * side, width * side), dtype=torch.uint8)
        frames = made["v0"][0] if i == 2 else frames
        made[f"v{i}"] = frames, VideoMetadata(total_num_frames=number, fps=fps, frames_indices=list(range(number)))
    return made


def encode(processor, rows, shown, padding_side="right"):
    """Rows of `(names of images and videos, prompt, response)` as a batch, by transformers' processor."""
    places = {"i": "<|vision_start|><|image_pad|><|vision_end|>", "v": "<|vision_start|><|video_pad|><|vision_end|>"}
    texts = [
        "<|im_start|>user\n" + "".join(places[name[0]] for name in names) + f"{prompt}<|im_end|>\n"
        f"<|im_start|>assistant\n{response}<|im_end|>\n"
        for names, prompt, response in rows
    ]
    images = [[shown[name] for name in names if name[0] == "i"] for names, _, _ in rows]
    videos = [shown[name] for names, _, _ in rows for name in names if name[0] == "v"]
    of_videos = {"videos": [frames for frames, _ in videos], "video_metadata": [metadata for _, metadata in videos]}
    return dict(
        processor(
            text=texts,
            images=images if any(images) else None,
            **(of_videos | {"do_resize": False, "do_sample_frames": False} if videos else {}),
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
        )
    )


words = st.sampled_from(["Which came first?", "Which came first? A digit?", "4", "", "I see 4 and 5."])
names = st.sampled_from([f"i{i}" for i in range(len(SIZES))] + [f"v{i}" for i in range(len(FILMS))])
prompts = st.tuples(st.lists(names, max_size=3), words)
groups = st.lists(st.tuples(prompts, st.lists(words, min_size=1, max_size=6)), min_size=1, max_size=3)


# The eager attention of transformers takes its softmax in float32.
@pytest.mark.parametrize(
    ("attention", "dtype", "tolerance"), [("sdpa", torch.float64, 1e-9), ("eager", torch.float32, 1e-4)]
)
@pytest.mark.parametrize("name", ["reward", "policy"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=groups, padding_side=st.sampled_from(["left", "right"]), order=st.randoms(use_true_random=False))
def test_any_batch(
    models,  # noqa: F811
    processor,
    shown,
    in_float64,  # noqa: F811
    name,
    attention,
    dtype,
    tolerance,
    groups,
    padding_side,
    order,  # noqa: F811
):
    rows = [(*prompt, response) for prompt, responses in groups for response in responses]
    order.shuffle(rows)
    batch = encode(processor, rows, shown, padding_side)
    if "pixel_values" not in batch and "pixel_values_videos" not in batch:
        return  # a batch of text: `test_prefix_sharing` has those
    model = models[name].to(dtype)
    unshare_prefixes(model).set_attn_implementation(attention)
    assert_same(model, batch, tolerance)


PAIRS = [
    (["v0"], "Which came first?", "I see 4 and 5. Answer: 4"),
    (["i0", "v3"], "Is it in there?", "4"),
    ([], "Is 4 larger than 5?", "no"),
    (["v0"], "Which came first?", "5"),
    (["i0", "v3"], "Is it in there?", "I see 4 and 5. Answer: 5"),
    ([], "Is 4 larger than 5?", "yes, it is"),
]


@pytest.mark.parametrize("name", ["reward", "policy"])
def test_float32(models, processor, shown, name):  # noqa: F811
    assert_same(models[name].float(), encode(processor, PAIRS, shown), 1e-4)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("fps", [0.1, 0.7, 2.0, 24.0, 29.97])
@pytest.mark.parametrize("frames", [2, 4, 10, 32])
def test_positions_are_those_of_transformers(models, processor, frames, fps, padding_side):  # noqa: F811
    backbone, side = models["reward"].model, processor.video_processor.patch_size * 2
    sizes = [(frames, 2, 3, fps), (4, 1, 1, 2.0), (2 * frames, 5, 1, fps)]
    videos = {
        f"v{i}": (
            torch.zeros(number, 3, height * side, width * side, dtype=torch.uint8),
            VideoMetadata(total_num_frames=number, fps=rate, frames_indices=list(range(number))),
        )
        for i, (number, height, width, rate) in enumerate(sizes)
    }
    shown = videos | {"i0": Image.new("RGB", (2 * side, side))}
    rows = [
        (["v0"], "sum?", "4"),
        (["v1", "i0", "v2"], "is it?", "5"),
        ([], "?", ""),
        (["i0", "v0", "v0"], "", "I see"),
    ]
    batch = encode(processor, rows, shown, padding_side)
    attended = batch["attention_mask"].bool()
    seconds = {key: batch[key] for key in ("second_per_grid_ts",) if key in batch}
    grids = batch["image_grid_thw"], batch["video_grid_thw"]
    expected, _ = backbone.get_rope_index(
        batch["input_ids"], batch["mm_token_type_ids"], *grids, attention_mask=attended, **seconds
    )
    positions = Visuals.of_batch(batch).positions(backbone.config, batch["input_ids"], attended)
    assert torch.equal(positions[:, attended], expected[:, attended])
    steps = (positions[0, 1] - positions[1, 1])[batch["mm_token_type_ids"][1] == 2]
    assert family_of(backbone.config).times_in_text or fps > 2 or steps.max() >= frames  # it does say the time


@pytest.mark.parametrize("frozen", [True, False], ids=["tower frozen", "tower trained"])
@pytest.mark.parametrize("name", ["reward", "policy"])
def test_the_order_of_module_calls_does_not_depend_on_the_rows(models, processor, shown, name, frozen):  # noqa: F811
    """Under ZeRO-3 and FSDP2 each call gathers weights with the other ranks, which hold other rows."""
    model = share_prefixes(models[name].float())
    model.model.visual.requires_grad_(not frozen)
    for projector in family_of(model.config).projectors:
        model.model.visual.get_submodule(projector).requires_grad_(True)
    film, image, both = (["v0"], "Which?", "9"), (["i0"], "Which?", "9"), (["i0", "v3"], "Which?", "I see 4 and 5.")
    text = ([], "Is 4 larger than 5?", "no")
    batches = [
        [text],
        [image],
        [film],
        [both],
        [film, film[:2] + ("8",)],
        [both, both[:2] + ("8",)],
        [text, image, film],
    ]
    orders = [modules_run(model, encode(processor, rows, shown)) for rows in batches]
    for rows, order in zip(batches, orders, strict=True):
        assert order == orders[0], rows
    assert orders[0].count("model.visual.patch_embed.proj") == 1 and len(orders[0]) > 50
    for parameter in models[name].parameters():
        parameter.requires_grad_(True)


def test_each_token_and_each_video_is_computed_once(models, processor, shown):  # noqa: F811
    model, merge = share_prefixes(models["reward"].float()), processor.video_processor.merge_size**2
    rows = [(["v0"], "Which came first?", "4"), (["v0"], "Which came first?", "5"), (["v0"], "How many?", "4")]
    batch = encode(processor, rows, shown)
    tokens, patches = tokens_computed(model, batch)[::-1]
    assert patches == 2 * 2 * 2 * merge  # four frames are two steps in time
    assert tokens < 0.6 * batch["input_ids"].numel()
    # The same frames at another rate pass the tower once, and stand elsewhere in time.
    batch = encode(processor, [rows[0], (["v2"], *rows[0][1:])], shown)
    tokens, patches = tokens_computed(model, batch)[::-1]
    assert patches == 2 * 2 * 2 * merge
    with torch.no_grad():
        one, other = model(**batch).logits.flatten().tolist()
        plain = unshare_prefixes(model)(**batch).logits.flatten().tolist()
    assert abs(one - other) > 1e-5 and [one, other] == pytest.approx(plain, abs=1e-5)


def test_a_still_video_and_its_image_are_encoded_once(models, processor, shown):  # noqa: F811
    """They have the same patches where both are normalised alike, and their tokens tell which is which."""
    image = shown["i0"]
    still = torch.stack([torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(*image.size[::-1], 3)] * 2)
    still = still.permute(0, 3, 1, 2).contiguous(), VideoMetadata(total_num_frames=2, fps=2.0, frames_indices=[0, 1])
    rows = [(["i0"], "Which?", "4"), (["v9"], "Which?", "4"), (["v9"], "Which?", "5")]
    batch = encode(processor, rows, shown | {"v9": still})
    visuals = Visuals.of_batch(batch)
    assert visuals.numbers == [0, 0, 0] and torch.equal(visuals.pixels, batch["pixel_values"])
    assert_same(models["reward"].float(), batch, 1e-4)


def test_videos_without_their_pixels_are_refused(models, processor, shown):  # noqa: F811
    batch = encode(processor, PAIRS[:1], shown)
    for model in (share_prefixes(models["reward"]), unshare_prefixes(models["reward"])):
        with pytest.raises(ValueError, match="`input_ids` holds video tokens, but there are no `pixel_values_videos`"):
            model(**{key: value for key, value in batch.items() if key != "pixel_values_videos"})
        with pytest.raises(ValueError, match="`video_grid_thw` came without `mm_token_type_ids`"):
            model(**{key: value for key, value in batch.items() if key != "mm_token_type_ids"})


def test_generation_sees_the_video(models, processor, shown):  # noqa: F811
    batch = encode(processor, PAIRS[:2], shown, padding_side="left")
    settings = {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": 3, "eos_token_id": None}
    outputs = []
    for model in (unshare_prefixes(models["policy"].float()), share_prefixes(models["policy"])):
        torch.manual_seed(0)
        outputs.append(model.generate(**batch, **settings))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("kept", [["pixel_values_videos"], ["pixel_values_videos", "pixel_values"]])
def test_what_is_not_shared_still_passes_the_tower_in_one_call(models, processor, shown, monkeypatch, kept):  # noqa: F811
    monkeypatch.setattr(shared_forward, "WORTH_IT", 0.0)
    rows = [row for row in PAIRS if row[0] and ("i0" in row[0]) == (len(kept) == 2)]
    assert_same(models["reward"].float(), encode(processor, rows, shown), 1e-4)
