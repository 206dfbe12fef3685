"""A video becomes the frames that `qwen_vl_utils` takes of it, or is refused by its name before it does harm."""

import copy
import os
import struct

import av
import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import fetch_video, vision_process
from torchvision.transforms.functional import pil_to_tensor
from transformers import AutoProcessor
from video_files import SIZE, frames, shades, write_video

from vl_reward.data.videos import video, video_file
from vl_reward.data.videos.frame_limits import FrameLimits
from vl_reward.data.videos.video import load_video, sampling_of
from vl_reward.data.videos.video_source import as_video_list, video_key


@pytest.fixture
def limited(processor):
    """The processor with limits, by which frames of 96 x 64 pixels become 84 x 56."""
    limits, own = {"fps": 4.0, "max_frames": 16, "max_pixels": 84 * 56}, copy.deepcopy(processor)

    def limit(**changes):
        FrameLimits(**limits | changes).keep_in(own)
        return own

    return limit


@pytest.fixture
def qwens_own(monkeypatch):
    """`fetch_video`, with a reader of its own kind: this torchvision has none."""

    def read(ele):
        with av.open(ele["video"]) as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate)
            pictures = torch.stack([pil_to_tensor(frame.to_image()) for frame in container.decode(stream)])
        total = len(pictures)
        number = vision_process.smart_nframes(ele, total_frames=total, video_fps=fps)
        indices = torch.linspace(0, total - 1, number).round().long()
        metadata = {"fps": fps, "frames_indices": indices.tolist(), "total_num_frames": total}
        return pictures[indices], metadata, number / total * fps

    monkeypatch.setitem(vision_process.VIDEO_READER_BACKENDS, "torchvision", read)
    monkeypatch.setattr(vision_process, "get_video_reader_backend", lambda: "torchvision")
    return lambda ele: fetch_video(ele, return_video_sample_fps=True, return_video_metadata=True)


@pytest.mark.parametrize(
    "number, fps", [(12, 8), (13, 8), (40, 25), (200, 30), (4, 8), (5, 30), (2, 1), (21, 3), (31, 2)]
)
@pytest.mark.parametrize("max_pixels", [84 * 56, 200 * 200])
def test_a_file_is_what_qwens_own_reader_makes_of_it(tmp_path, limited, qwens_own, number, fps, max_pixels):
    path = str(write_video(tmp_path / "a.mp4", frames(number), fps))
    least = min(128 * 28 * 28, max_pixels)
    asked = {"video": path, "fps": 4.0, "max_frames": 16, "max_pixels": max_pixels, "min_pixels": least}
    (pixels, metadata), sampled_fps = qwens_own(asked)
    taken = load_video(path, limited(max_pixels=max_pixels))
    assert torch.equal(taken.frames.float(), pixels)
    assert taken.sampling == sampling_of(path, limited(max_pixels=max_pixels))
    assert list(taken.sampling.indices) == metadata["frames_indices"] and taken.sampling.fps == metadata["fps"]
    assert taken.sampling.total == metadata["total_num_frames"]
    assert taken.sampling.seconds_per_frame == pytest.approx(1 / sampled_fps, rel=1e-12)
    assert taken.sampling.metadata.sampled_fps == pytest.approx(sampled_fps, rel=1e-12)


def test_a_slow_video_is_no_reason_to_warn(tmp_path, limited, caplog):
    path = write_video(tmp_path / "a.mp4", frames(10), 2)
    assert len(load_video(path, limited()).sampling.indices) == 10 and not caplog.records


def test_what_was_sampled_is_recorded(tmp_path, limited):
    sampling = sampling_of(write_video(tmp_path / "a.mp4", frames(12), 8), limited())
    assert sampling.record() == {
        "frames": 6,
        "seconds_per_frame": 0.25,
        "indices": (0, 2, 4, 7, 9, 11),
        "total": 12,
        "fps": 8.0,
        "height": 56,
        "width": 84,
    }


# --- THE ZOO ---


def mp4(path, **options):
    return write_video(path, frames(), **options)


def with_extra_atom(data, name, offset, values):
    """An MP4 with other values in one of its atoms."""
    data, start = bytearray(data), data.find(name) + offset
    data[start : start + len(values)] = values
    return bytes(data)


def turned_file(path):
    data = mp4(path).read_bytes()  # a phone held upright: a quarter to the right
    path.write_bytes(with_extra_atom(data, b"tkhd", 44, struct.pack(">9i", 0, 2**16, 0, -(2**16), 0, 0, 0, 0, 2**30)))


def cut_file(path):
    data = mp4(path, movflags="faststart").read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def file_without_its_end(path):  # where an MP4 has its table of contents
    data = mp4(path).read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def cut_matroska(path):
    noise = [Image.effect_noise(SIZE, 80 + i).convert("RGB") for i in range(40)]
    data = write_video(path.with_suffix(".mkv"), noise).read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def huge_file(path):
    data = write_video(path.with_suffix(".avi"), frames(), codec="rawvideo").read_bytes()
    path.write_bytes(with_extra_atom(data, b"strf", 12, struct.pack("<ii", 9_000, 9_000)))


def file_without_frames(path):
    with av.open(str(path), "w", options={"movflags": "empty_moov"}) as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = SIZE
        container.start_encoding()


def sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


GOOD = {
    "a plain one": (mp4, [0, 2, 4, 7, 9, 11], (56, 84), 8.0),
    "Matroska": (lambda path: write_video(path.with_suffix(".mkv"), frames()).rename(path), [0, 2, 4, 7, 9, 11],
                 (56, 84), 8.0),
    "AVI": (lambda path: write_video(path.with_suffix(".avi"), frames(), codec="mpeg4").rename(path),
            [0, 2, 4, 7, 9, 11], (56, 84), 8.0),
    # Four frames in 0.3 seconds, then one a second: eight at even distances in time are not the eight that there are.
    "frames at uneven distances": (
        lambda path: write_video(path, frames(8), times=[0, 100, 200, 300, 1300, 2300, 3300, 4300]),
        [0, 3, 4, 5, 5, 6, 6, 7], (56, 84), 7 / 4.3,
    ),
    "a turned one": (turned_file, [0, 2, 4, 7, 9, 11], (84, 56), 8.0),
}  # fmt: skip
HOSTILE = {
    "cut": (cut_file, "it is cut off: its header says 12 frames, and"),
    "cut before its table": (file_without_its_end, "it has no video in it, or is cut off"),
    "cut Matroska": (cut_matroska, "it is cut off"),
    "a huge header": (huge_file, r"frames of 9000 x 9000 pixels, and 67,108,864 are the limit"),
    "no frame": (file_without_frames, "it has no frame"),
    "sound": (sound_only, "it has no video in it"),
    "text": (lambda path: path.write_text("a video, it says\n" * 50), "bytes that are no video"),
    "a playlist": (
        lambda path: path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n"),
        "bytes that are no video",
    ),
    "nothing": (lambda path: path.write_bytes(b""), "it is empty"),
    "one frame": (lambda path: write_video(path, frames(1)), "it has 1 frame, and 2 are the least"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_files(tmp_path, limited, name):
    make, places, size, fps = GOOD[name]
    make(tmp_path / "a.mp4")
    taken = load_video(tmp_path / "a.mp4", limited())
    assert taken.frames.shape[-2:] == size and taken.sampling.fps == pytest.approx(fps)
    assert shades(taken.frames) == places
    corners = taken.frames[0, 0, :: taken.frames.shape[2] - 1, :: taken.frames.shape[3] - 1]
    assert (corners > 200).tolist() == (
        [[False, True], [False, False]] if "turned" in name else [[True, False], [False, False]]
    )
    by_bytes = load_video((tmp_path / "a.mp4").read_bytes(), limited())
    assert torch.equal(by_bytes.frames, taken.frames) and by_bytes.sampling == taken.sampling


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_the_reason(tmp_path, limited, name):
    make, reason = HOSTILE[name]
    make(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=rf"a\.mp4 could not be read as a video \(.*{reason}.*Replace it"):
        load_video(tmp_path / "a.mp4", limited())


def test_the_caps_hold_before_a_frame_is_decoded(tmp_path, limited, monkeypatch):
    path = mp4(tmp_path / "a.mp4")
    for name, value, reason in [
        ("MAX_BYTES", 100, "bytes, and 100 are the limit"),
        ("MAX_FRAMES", 11, "it has more than 11 frames"),
        ("MAX_FRAME_PIXELS", 6143, "frames of 96 x 64 pixels, and 6,143 are the limit"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(video_file, name, value)
            patch.setattr(video, "decode", None)
            with pytest.raises(ValueError, match=reason):
                load_video(path, limited())


# --- FRAMES ---


def test_a_folder_and_a_list_of_frames_are_one_video(tmp_path, limited):
    pictures, files = frames(7), []
    for i, picture in enumerate(pictures):
        files.append(tmp_path / f"{i:02}.png")
        picture.save(files[-1])
    (tmp_path / "notes.txt").write_text("no frame")
    as_bytes = [file.read_bytes() for file in files]
    expected = load_video(pictures, limited())
    # Sampled at `fps` already; the last is repeated, since two frames are one step in time.
    assert shades(expected.frames) == [0, 1, 2, 3, 4, 5, 6, 6]
    assert expected.sampling.seconds_per_frame == 1 / 4.0 and expected.frames.shape == (8, 3, 56, 84)
    stored = {"path": None, "bytes": None, "frames": [{"bytes": data, "path": None} for data in as_bytes]}
    for source in (tmp_path, str(tmp_path), files, list(map(str, files)), as_bytes, tuple(pictures), stored):
        given = load_video(source, limited())
        assert torch.equal(given.frames, expected.frames) and given.sampling == expected.sampling
        assert sampling_of(source, limited()) == expected.sampling
    thinned = load_video(tmp_path, limited(max_frames=5))
    assert shades(thinned.frames) == [0, 2, 5, 6] and thinned.sampling.seconds_per_frame == 8 / 4 / 4.0


def test_frames_are_those_of_qwens_own_reader_where_it_scales_once(limited, qwens_own):
    pictures = [Image.effect_noise((112, 56), 80 + i).convert("RGB") for i in range(5)]
    limits = {"max_pixels": 112 * 56, "min_pixels": 112 * 56}
    (pixels, metadata), sampled_fps = qwens_own({"video": pictures, "sample_fps": 4.0} | limits)
    given = load_video(pictures, limited(max_pixels=112 * 56))
    assert torch.equal(given.frames.float(), pixels) and list(given.sampling.indices) == metadata["frames_indices"]
    assert given.sampling.metadata.sampled_fps == sampled_fps == 4.0


REFUSED = {
    "a URL": ("https://example.org/a.mp4", r"https://example.org/a.mp4 could .*it is a URL, and nothing is fetched"),
    "a file's URL": ("file:///etc/passwd", "it is a URL"),
    "FFmpeg's own protocol": ("concat:a.mp4|b.mp4", r"concat:a.mp4\|b.mp4 could not be read as a video .*No such file"),
    "a missing file": ("none.mp4", "none.mp4 could not be read as a video .*No such file"),
    "no frames": ([], "it is empty"),
    "nothing": (None, "it is a NoneType"),
    "an empty path": ("", "it is empty"),
    "an image": (Image.new("RGB", SIZE), "it is a Image"),
    "a tensor": (torch.zeros(4, 3, 56, 56), "it is a Tensor"),
    "frames of two sizes": (
        [Image.new("RGB", SIZE), Image.new("RGB", (64, 64))],
        "a video of 2 frames.*different sizes",
    ),
    "a frame that is cut": ([b"\x89PNG"] * 2, "a video of 2 frames, from image bytes could .*cannot identify 4 bytes"),
    "a frame's URL": (["https://example.org/a.png"] * 2, "it is a URL"),
    "a thread": ([Image.new("RGB", (190, 1))] * 2, "so long and thin that no token of 4704 pixels is left"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_video_is_refused_with_the_reason(limited, name):
    source, reason = REFUSED[name]
    for read in (load_video, sampling_of):
        with pytest.raises(ValueError, match=reason):
            read(source, limited())


def test_a_pipe_and_an_empty_folder_are_not_waited_for(tmp_path, limited):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "clip").mkdir()
    with pytest.raises(ValueError, match="it is not a regular file"):
        load_video(tmp_path / "pipe.mp4", limited())
    with pytest.raises(ValueError, match="it is a folder without a frame"):
        load_video(tmp_path / "clip", limited())


def test_one_video_alone_is_a_list_of_one(tmp_path):
    assert as_video_list(None) == [] and as_video_list((["a.png"], "b.mp4")) == [["a.png"], "b.mp4"]
    for alone in ("a.mp4", tmp_path, b"video", {"path": "a.mp4"}):
        assert as_video_list(alone) == [alone]
    for other in (7, {"a.mp4"}, iter(["a.mp4"])):
        with pytest.raises(ValueError, match="`videos` is .*, and a video or a list of videos is needed"):
            as_video_list(other)


def test_a_key_is_that_of_the_same_source():
    picture = Image.new("RGB", SIZE)
    assert video_key({"path": "a.mp4", "bytes": None}) == video_key("a.mp4") != video_key("b.mp4")
    assert video_key([picture, "a.png"]) == video_key((picture, {"path": "a.png"})) != video_key(["a.png", picture])


# --- LIMITS ---


def test_limits_are_saved_and_loaded_with_the_processor(tmp_path, limited):
    limited(fps=1.5, max_frames=10).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path, max_pixels=50 * 28 * 28)
    assert FrameLimits.of(loaded) == FrameLimits(1.5, 10, 84 * 56)


def test_default_limits_are_within_a_few_thousand_tokens(tmp_path, processor):
    assert FrameLimits.of(processor) == FrameLimits()
    sampling = sampling_of([Image.new("RGB", (1920, 1080))] * 200, processor)
    assert (len(sampling.indices), sampling.height, sampling.width) == (64, 280, 504)
    assert len(sampling.indices) // 2 * (280 // 28) * (504 // 28) == 5760


@pytest.mark.parametrize(
    "limits, reason",
    [
        ({"fps": 0.0}, "`video_fps` is 0.0"),
        ({"fps": float("nan")}, "`video_fps` is nan"),
        ({"max_frames": 1}, "`video_max_frames` is 1, and 2 frames are the least"),
        ({"max_pixels": 0}, "`video_max_pixels` is 0"),
        ({"max_pixels": 783}, "`video_max_pixels` is 783, and one visual token is 28 x 28 pixels"),
    ],
)
def test_limits_that_no_video_meets_are_refused(limited, limits, reason):
    with pytest.raises(ValueError, match=reason):
        load_video(frames(4), limited(**limits))
