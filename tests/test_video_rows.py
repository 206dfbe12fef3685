"""Rows with videos beside rows with images and of text: what the model gets is what transformers makes of them."""

import copy

import pytest
import torch
from PIL import Image
from video_files import frames, write_video

from vl_reward import ResponseSampler, RewardScorer, SamplingParameters
from vl_reward.data.encoding import count_tokens, encode_conversations, encode_prompts, render
from vl_reward.data.images import load_image
from vl_reward.data.placeholders import extract_images, place_images
from vl_reward.data.videos.frame_limits import FrameLimits
from vl_reward.data.videos.video import load_video
from vl_reward.inference.fingerprints import row_key, settings_fingerprint
from vl_reward.models.repeated_visuals import repeated


ASKED = [{"role": "user", "content": "Which?"}]
ANSWER = [{"role": "assistant", "content": "Yes. Answer: 9"}]


@pytest.fixture(scope="session")
def films(processor, tmp_path_factory):
    """The processor with small limits, and videos: a file of 12 frames in 1.5 seconds, a list of 4, and one of 7."""
    folder, processor = tmp_path_factory.mktemp("films"), copy.deepcopy(processor)
    side = 2 * processor.video_processor.patch_size
    FrameLimits(fps=4.0, max_frames=6, max_pixels=6 * side**2).keep_in(processor)
    path = write_video(folder / "a.mp4", frames(12), 8)
    drawn = [
        [Image.effect_noise((width * side, height * side), 60 + i).convert("RGB") for i in range(number)]
        for number, width, height in [(4, 2, 2), (7, 1, 3)]
    ]
    return processor, [str(path), *drawn]


@pytest.fixture(scope="session")
def rows(films, processor):
    """Conversations with their images and videos: text, an image, a video, two videos, and all of it in one."""
    _, (film, short, long) = films
    side = 2 * processor.image_processor.patch_size
    image = Image.effect_noise((2 * side, 3 * side), 90).convert("RGB")
    mixed = [{"type": "text", "text": "At first "}, {"type": "video"}, {"type": "text", "text": "then "}]
    mixed += [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "Which?"}]
    asked = [
        ("What is 4 + 5?", [], []),
        ("What is it?", [image], []),
        ("Which came first?", [], [film]),
        ("<video>Or here<video>?", [], [short, long]),
        (mixed, [image], [long, film]),
    ]
    return [([{"role": "user", "content": content}, *ANSWER], *shown) for content, *shown in asked]


def by_processor(processor, rows, padding_side="right"):
    """What transformers' processor makes of the rows."""
    videos = [[load_video(video, processor) for video in row[2]] for row in rows]
    flat = [video for row in videos for video in row]
    texts = [
        render(processor, "row", messages, images, shown)
        for (messages, images, _), shown in zip(rows, videos, strict=True)
    ]
    images = [[load_image(image) for image in row[1]] for row in rows]
    of_videos = {
        "videos": [video.frames for video in flat],
        "video_metadata": [video.sampling.metadata for video in flat],
        "do_resize": False,
        "do_sample_frames": False,
    }
    return processor(
        text=texts,
        images=images if any(images) else None,
        **(of_videos if flat else {}),
        padding=True,
        padding_side=padding_side,
        return_tensors="pt",
    )


def columns_of(rows):
    return ([row[i] for row in rows] for i in range(3))


@pytest.mark.parametrize("chosen", [[2], [3], [4], [0, 1, 2, 3, 4], [2, 2, 4]])
def test_rows_are_encoded_as_transformers_encodes_them(films, rows, chosen):
    processor, _ = films
    rows = [rows[i] for i in chosen]
    conversations, images, videos = columns_of(rows)
    names = [f"row {i}" for i in chosen]
    batch = encode_conversations(processor, conversations, images, names, videos=videos)
    expected = by_processor(processor, rows)
    of_rows = repeated(batch)
    assert of_rows.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(of_rows[key], value), key
    lengths = batch["attention_mask"].sum(1).tolist()
    for (messages, *shown), name, length in zip(rows, names, lengths, strict=True):
        text = render(processor, name, messages, *shown)
        assert count_tokens(processor, name, [text], *shown) == length


def test_prompts_are_encoded_with_their_videos(films, rows):
    processor, _ = films
    _, images, videos = columns_of(rows)
    prompts = [row[0][:1] for row in rows]
    batch = encode_prompts(processor, prompts, images, ["row"] * 5, videos)
    whole = encode_conversations(processor, [row[0] for row in rows], images, ["row"] * 5, videos=videos)
    assert torch.equal(batch["pixel_values_videos"], repeated(whole)["pixel_values_videos"])
    for i in range(len(rows)):
        begun = batch["input_ids"][i][batch["attention_mask"][i].bool()]
        assert torch.equal(begun, whole["input_ids"][i, : len(begun)])


def test_a_batch_of_videos_alone_needs_no_blank_image(films, rows):
    processor, _ = films
    batch = encode_conversations(processor, [rows[0][0], rows[2][0]], [[], []], ["a", "b"], videos=[[], rows[2][2]])
    assert "pixel_values" not in batch and batch["video_grid_thw"].tolist() == [[3, 4, 6]]
    assert not (batch["input_ids"] == processor.image_token_id).any()


def test_scores_are_those_of_the_model_on_what_the_processor_gives(films, rows, reward_model):
    processor, _ = films
    reward_model.score.weight.data.normal_()
    conversations, images, videos = columns_of(rows)
    prompts, completions = [turns[:1] for turns in conversations], [turns[1:] for turns in conversations]
    scores = RewardScorer(reward_model, processor)(prompts, completions, images=images, videos=videos)
    with torch.no_grad():
        expected = [reward_model(**by_processor(processor, [row])).logits.item() for row in rows]
    assert scores == pytest.approx(expected, abs=1e-4)
    # The order of frames counts, and a row without a video is not scored as one with it.
    backwards = [[list(reversed(video)) if isinstance(video, list) else video for video in row] for row in videos]
    turned = RewardScorer(reward_model, processor)(prompts, completions, images=images, videos=backwards)
    assert turned[:3] == pytest.approx(scores[:3], abs=1e-4) and abs(turned[3] - scores[3]) > 1e-4
    # TRL's GRPOTrainer fills placeholders.
    held = [{"role": "user", "content": [{"type": "video", "video": videos[2][0]}, {"type": "text", "text": "Which?"}]}]
    asked = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which?"}]}]
    scorer = RewardScorer(reward_model, processor)
    assert scorer([held], ["Yes."]) == scorer([asked], ["Yes."], videos=[videos[2]])
    candidates = {"prompt": asked, "images": [], "videos": videos[2], "responses": ["Yes.", "No.", "Yes."]}
    (scored,) = scorer.score_responses([candidates])
    assert scored == scorer.score_candidates([candidates])[0] and scored[0] == scored[2] != scored[1]
    assert scored[0] == pytest.approx(scorer([asked], ["Yes."], videos=[videos[2]])[0], abs=1e-4)


REFUSED = {
    "no place": (
        [{"role": "user", "content": [{"type": "text", "text": "Which?"}]}], None, [["film"]],
        r"Number of videos provided \(1\) does not match number of video placeholders \(0\)",
    ),
    "a place and no video": (
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which?"}]}], None, None,
        r"Number of videos provided \(0\) does not match number of video placeholders \(1\)",
    ),
    "a mark and no video": ("<video>\nWhich came first?", None, None, r"Number of videos provided \(0\)"),
    "two lists for one completion": ("Which?", None, [["film"], ["film"]], "'completions': 1, 'videos': 2"),
    "a URL": ("Which?", None, [["https://example.org/a.mp4"]], "completion 0: https://example.org/a.mp4 could not be"),
    "a video in the images' place": ("Which?", [["film"]], None, "a.mp4 could not be decoded"),
    "an answer that shows one": (
        [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "<video>"}, *ASKED],
        None, [["film"]], "an earlier answer of the assistant has <video>, and videos are the user's",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(films, reward_model, name):
    prompt, images, videos, reason = REFUSED[name]
    processor, (film, *_) = films

    def real(column):
        return column and [film if row == "film" else [film if one == "film" else one for one in row] for row in column]

    with pytest.raises(ValueError, match=reason):
        RewardScorer(reward_model, processor)([prompt], ["Yes."], images=real(images), videos=real(videos))


def test_a_template_without_videos_is_refused(films, rows):
    processor = copy.deepcopy(films[0])
    processor.chat_template = processor.chat_template.replace("part.type == 'video'", "false")
    with pytest.raises(ValueError, match="row 7: the chat template writes 0 places for 1 videos"):
        encode_conversations(processor, [rows[2][0]], [[]], ["row 7"], videos=[rows[2][2]])


def test_where_videos_stand():
    def kinds(content, *given):
        (message,) = place_images([{"role": "user", "content": content}], *given)
        return [part.get("text") or part["type"] for part in message["content"]]

    assert kinds("Q?", 1, 2) == ["image", "video", "video", "Q?"]
    assert kinds("<image>Is it in <video>?", 1, 1) == ["image", "Is it in ", "video", "?"]
    assert kinds("<video>Q?", 1, 1) == ["image", "video", "Q?"]  # what is not placed stands before the text
    assert kinds("What does <video> do in HTML?", 0) == ["What does <video> do in HTML?"]
    assert kinds("What does <video> do in HTML?", 1) == ["image", "What does <video> do in HTML?"]
    parts = [{"type": "image"}, {"type": "video", "index": None}, {"type": "text", "text": "Q"}]
    assert kinds(parts, 1, 1) == ["image", "video", "Q"]
    filled = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "image", "image": "b.png"}]}]
    assert extract_images(filled)[1:] == (["b.png"], ["a.mp4"])
    held = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]
    with pytest.raises(ValueError, match="a message holds a video itself, and videos are read from the row's `videos`"):
        place_images(held, 0, 1)


# --- FINGERPRINTS ---


def test_limits_are_part_of_the_fingerprint(films):
    fingerprints = set()
    for limits in (FrameLimits(), FrameLimits(fps=1.0), FrameLimits(max_frames=8), FrameLimits(max_pixels=9999)):
        processor = copy.deepcopy(films[0])
        limits.keep_in(processor)
        fingerprints.add(settings_fingerprint(processor))
    assert len(fingerprints) == 4
    del processor.video_processor.frame_limits  # the defaults are a choice, too
    assert settings_fingerprint(processor) not in fingerprints


def test_a_rows_key_is_of_its_videos_contents(tmp_path):
    def key(**changes):
        return row_key("model", {"id": "1", "prompt": "Q?", "images": [], **changes})

    one, two = frames(2)
    for number, picture in enumerate((one, two)):
        picture.save(tmp_path / f"{number}.png")
    (tmp_path / "clip").mkdir()
    one.save(tmp_path / "clip/0.png")
    (tmp_path / "a.mp4").write_bytes(b"one"), (tmp_path / "b.mp4").write_bytes(b"one")
    files = [str(tmp_path / f"{number}.png") for number in range(2)]
    assert key() == key(videos=[]) == key(videos=None)
    assert key(videos=[str(tmp_path / "a.mp4")]) == key(videos=[tmp_path / "b.mp4"]) == key(videos=[b"one"])
    before = key(videos=[str(tmp_path / "clip")])
    assert before == key(videos=[[files[0]]])
    given = [
        [str(tmp_path / "a.mp4")],
        [files],
        [files[::-1]],
        [[one, two]],
        [[files[0]], [files[1]]],
        ["none.mp4"],
        [""],
    ]
    keys = [key(), *(key(videos=videos) for videos in given), key(images=files), before]
    assert len(set(keys)) == len(keys)
    two.save(tmp_path / "clip/1.png")
    assert key(videos=[str(tmp_path / "clip")]) not in keys[-1:]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"], indirect=True)
def test_each_prompt_is_sampled_on_with_its_own_video(films, rows, policy):
    """transformers repeats the inputs of a prompt for its samples: the videos of each have to go along."""
    processor, _ = films
    sharp = ResponseSampler(
        policy, processor, SamplingParameters(max_new_tokens=8, temperature=1e-5)
    )  # the most likely word, by drawing
    columns = [[row[0][:1] for row in rows], [row[1] for row in rows], 2, None, [row[2] for row in rows]]
    together, _ = sharp(*columns)
    for i, row in enumerate(rows):
        alone, _ = sharp([row[0][:1]], [row[1]], videos=[row[2]])
        assert together[i] == alone[0] * 2
    backwards = [[list(reversed(video)) if isinstance(video, list) else video for video in row[2]] for row in rows]
    turned, _ = sharp(*columns[:4], backwards)
    assert turned[:3] == together[:3]
    with torch.no_grad():
        logits = [
            policy(**encode_prompts(processor, [rows[3][0][:1]], [[]], ["r"], [videos])).logits[0, -1]
            for videos in (rows[3][2], backwards[3])
        ]
    assert (logits[0] - logits[1]).abs().max() > 1e-4
