"""The images and videos of a benchmark's rows, as its public file names them."""

from collections.abc import Sequence
from pathlib import Path

from ..data.encoding import named_row
from ..data.images import as_image_list, blank_image
from ..data.videos.video import blank_video
from ..data.videos.video_source import as_video_list, frame_files


class BenchmarkImages:
    """
    Finds the images and videos of a benchmark's rows: paths under a folder, folders of video frames, or the bytes in a
    parquet file.

    Args:
        folder (`str` or `Path`, *optional*):
            Where paths start, and what they may not leave: a benchmark's file comes from others. Without it, images and
            videos are one's own, and taken as they are.
    """

    def __init__(self, folder: str | Path | None):
        self.folder = None if folder is None else Path(folder).resolve()

    def of(self, rows: list[dict]) -> "FoundImages":
        """The images of each of `rows`; those of a video that is a folder are its frames."""
        return FoundImages(self, rows)

    def is_video(self, image) -> bool:
        """Whether `image`, one entry of a row's `images`, is a folder of frames under the image folder."""
        path = image.get("path") if isinstance(image, dict) and image.get("bytes") is None else image
        if self.folder is None or not isinstance(path, str) or path.startswith("data:"):
            return False
        path = (self.folder / path).resolve()
        return path != self.folder and path.is_relative_to(self.folder) and bool(frame_files(path))

    def find(self, image, row: str = "A row") -> list:
        """
        What `image`, one entry of a row's `images`, stands for: a list of what [`load_image`] takes, which has several
        for a folder of frames. Errors name `row`.

        Raises:
            ValueError: If the image is null, or a path that leaves the folder.
            FileNotFoundError: If there is no such file.
        """
        if self.folder is None:
            return [image]
        if isinstance(image, dict) and image.get("bytes") is None:
            image = image.get("path")
        if image is None:
            raise ValueError(f"{row}: an image is null. Leave it out of `images`.")
        if not isinstance(image, str) or image.startswith("data:"):
            return [image]
        path = self._located("image", image, row)
        if frames := frame_files(path):
            return frames
        if not path.is_file():
            raise FileNotFoundError(
                f"{row}: there is no image {path}. Fetch the benchmark's images, or set `image_folder` to where they "
                "are; results from a `scores_file` need none."
            )
        return [str(path)]

    def find_video(self, video: str | dict, row: str = "A row") -> str | dict:
        """
        What `video`, one of a row's `videos`, stands for, as [`load_video`] takes it: a path under the folder, or
        bytes. Errors name `row`.

        Raises:
            ValueError: If a path leaves the folder.
            FileNotFoundError: If there is no such file or folder.
        """
        if isinstance(video, dict) and video.get("bytes") is not None:
            return video
        path = self._located("video", video["path"] if isinstance(video, dict) else video, row)
        if not path.exists():
            raise FileNotFoundError(
                f"{row}: there is no video {path}. Fetch the benchmark's videos, or set `image_folder` to where they "
                "are; results from a `scores_file` need none."
            )
        return str(path)

    def _located(self, kind: str, name: str, row: str) -> Path:
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder):
            raise ValueError(f"{row}: the {kind} {name} lies outside of {self.folder}. Set `image_folder`.")
        if path == self.folder:
            raise ValueError(f"{row}: the {kind} {name!r} is the image folder itself. Give a file in it, or null.")
        return path


class FoundImages(Sequence):
    """
    The images of each row, looked up when the row is asked for: those of a whole set do not fit into memory.

    Args:
        images ([`BenchmarkImages`]):
            Finds them.
        rows (`list[dict]`):
            The benchmark's rows.

    Raises:
        ValueError: If a path of the row leaves the folder. The row is named.
        FileNotFoundError: If there is no such image or video, or a folder without frames. The row is named.
    """

    def __init__(self, images: BenchmarkImages, rows: list[dict]):
        self.images, self.rows = images, rows

    def name(self, i: int) -> str:
        """What to call row `i` in an error message. Ids of benchmarks are not unique."""
        id = self.rows[i].get("id")
        return f"Row {i}" if id in (None, str(i)) else f"Row {i} ({id})"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> list:
        with named_row(self.name(i)):
            images = as_image_list(self.rows[i]["images"])
        return [one for image in images for one in self.images.find(image, self.name(i))]

    def apart(self, i: int) -> dict[str, Sequence]:
        """The `images` of row `i`, and its `videos`: its own, or else the folders of frames among the images."""
        if "videos" in self.rows[i]:
            videos = self.rows[i]["videos"]
            if self.images.folder is not None:
                videos = [self.images.find_video(video, self.name(i)) for video in videos]
            return {"images": self[i], "videos": videos}
        with named_row(self.name(i)):
            images = as_image_list(self.rows[i]["images"])
        videos = [image for image in images if self.images.is_video(image)]
        found = [one for image in images if image not in videos for one in self.images.find(image, self.name(i))]
        paths = [video["path"] if isinstance(video, dict) else video for video in videos]
        return {"images": found, "videos": [str((self.images.folder / path).resolve()) for path in paths]}


class AskedRows(Sequence):
    """
    The rows that a model is asked about, each with its images and videos, by which [`ResumableStore`] knows it. One
    whose images or videos are not found has none, and the reason under `unreadable`.

    Args:
        rows (`list[dict]`):
            What a benchmark's `load` gives.
        images ([`FoundImages`]):
            Of the rows.
        numbers (`Sequence[int]`, *optional*):
            Only these rows.
        frames_as_images (`bool`, *optional*, defaults to `False`):
            Whether the frames of a video that is a folder are images, as if they had nothing to do with each other.
            Else the folder is one of the row's `videos`.

    Raises:
        ValueError: If `frames_as_images` is asked of rows whose `videos` are videos already.
    """

    def __init__(
        self,
        rows: list[dict],
        images: FoundImages,
        numbers: Sequence[int] | None = None,
        frames_as_images: bool = False,
    ):
        if frames_as_images and any("videos" in row for row in rows):
            raise ValueError(
                "`frames_as_images` is for a benchmark whose videos are folders of frames among its images, and these "
                "rows have `videos`. Remove it, or list the frames under `images`."
            )
        self.rows, self.images, self.frames_as_images = rows, images, frames_as_images
        self.numbers = range(len(rows)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> dict:
        number = self.numbers[i]
        name = self.images.name(number)
        row = {**self.rows[number], "id": name.removeprefix("Row ")}
        try:
            return row | ({"images": self.images[number]} if self.frames_as_images else self.images.apart(number))
        except (ValueError, FileNotFoundError) as error:
            return row | {"images": [], "videos": [], "unreadable": str(error).removeprefix(f"{name}: ")}

    def select(self, numbers: Sequence[int]) -> "AskedRows":
        """The rows with the numbers `numbers`, named as they are here."""
        return AskedRows(self.rows, self.images, [self.numbers[i] for i in numbers], self.frames_as_images)

    @staticmethod
    def with_blank_images(rows: list[dict]) -> list[dict]:
        """`rows` with a white image, or a white video, of the same size for each of theirs."""
        blank = []
        for row in rows:
            with named_row(f"row {row['id']}"):
                images = [blank_image(image) for image in row["images"]]
                videos = [blank_video(video) for video in as_video_list(row.get("videos"))]
                blank.append({**row, "images": images, "videos": videos})
        return blank
