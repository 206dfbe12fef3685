"""MM-RLHF (`yifanzhang114/MM-RLHF`): human pairs about images and about videos, which are folders of frames."""

from collections.abc import Iterator
from pathlib import Path

from ...data.images import confined_path
from ..pair import Unusable, build_pair


LICENSE = "not stated on its card"
FRAME_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MAX_FRAMES = 16  # our choice: evenly spaced; frames cost visual tokens like images


def find_frames(folder: str, root: str | Path) -> list[str]:
    """
    The frames of a video, sorted by name, evenly thinned out to [`MAX_FRAMES`].

    Raises:
        Unusable: If the video is not a folder with frames, or leads out of the image root.
    """
    try:
        path = Path(confined_path(folder, root))
    except ValueError as error:
        raise Unusable("the video leads out of the image root") from error
    frames = sorted(file for file in path.iterdir() if file.suffix.lower() in FRAME_SUFFIXES) if path.is_dir() else []
    if not frames:
        raise Unusable("the video is not a folder with frames: extract them first")
    n = min(len(frames), MAX_FRAMES)
    return [str(frames[i * len(frames) // n]) for i in range(n)]


def pairs(row: dict) -> Iterator[dict]:
    """`prompt`, `chosen`, `rejected`, `id`, and `image` or `video`; `frames` are those that [`find_frames`] found."""
    images = [row["image"]] if row.get("image") else row.get("frames") or []
    if not images:
        raise Unusable("neither an image nor frames")
    prompt = row["prompt"].replace("<image>", "").replace("<video>", "").strip()
    yield build_pair(prompt, row["chosen"], row["rejected"], images, origin=row.get("id"))
