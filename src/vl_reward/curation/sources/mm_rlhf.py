"""MM-RLHF (`yifanzhang114/MM-RLHF`): human pairs about images and about videos, which are folders of frames."""

from collections.abc import Iterator

from ...data.images import confined_path
from ...data.videos.video_source import frame_files
from ..pair import Unusable, build_pair
from ..public_rows import read_rows


LICENSE = "not stated on its card"
read = read_rows
MAX_FRAMES = 16  # our choice: evenly spaced; frames cost visual tokens like images


def find_frames(video: str, root: str | None) -> list[str]:
    """
    The frames of a video, sorted by name, evenly thinned out to [`MAX_FRAMES`].

    Raises:
        Unusable: If the video is not a folder with frames, or leads out of the image root.
    """
    try:
        frames = frame_files(confined_path(video, root))
    except ValueError as error:
        raise Unusable("the video leads out of the image root") from error
    if not frames:
        raise Unusable("the video is not a folder with frames: extract them first")
    n = min(len(frames), MAX_FRAMES)
    return [frames[i * len(frames) // n] for i in range(n)]


def pairs(row: dict, root: str | None = None) -> Iterator[dict]:
    """`prompt`, `chosen`, `rejected`, `id`, and `image` or `video`, a folder of frames."""
    if not row.get("image") and not row.get("video"):
        raise Unusable("neither an image nor frames")
    images = [row["image"]] if row.get("image") else find_frames(row["video"], root)
    prompt = row["prompt"].replace("<image>", "").replace("<video>", "").strip()
    is_video = not row.get("image")
    yield build_pair(prompt, row["chosen"], row["rejected"], images, origin=row.get("id"), is_video=is_video)
