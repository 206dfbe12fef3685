"""The images of a benchmark's rows, as its public file names them."""

from pathlib import Path


FRAME_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


def frames_of(video: Path) -> list[str]:
    """The frames of a video, which is a folder of images, in the order of their names. What is no folder has none."""
    files = video.iterdir() if video.is_dir() else ()
    return sorted(str(file) for file in files if file.suffix.lower() in FRAME_SUFFIXES)


class BenchmarkImages:
    """
    Finds the images of a benchmark's rows: paths under a folder, folders of video frames, or the bytes in a parquet
    file.

    Args:
        folder (`str` or `Path`):
            Where paths start.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).resolve()

    def of(self, rows: list[dict]) -> list[list]:
        """
        The images of each row; those of a video are its frames.

        Raises:
            ValueError: If a path leaves the folder. A benchmark's file comes from others.
            FileNotFoundError: If there is no such image, or a folder without frames. The row is named.
        """
        return [[one for image in row["images"] for one in self.find(image, f"Row {i}")] for i, row in enumerate(rows)]

    def find(self, image, row: str = "A row") -> list:
        """What one entry of a row's `images` stands for, as [`load_image`] takes it. Errors name `row`."""
        if isinstance(image, dict) and image.get("bytes") is None:
            image = image.get("path")
        if not isinstance(image, str):
            return [image]
        path = (self.folder / image).resolve()
        if not path.is_relative_to(self.folder):
            raise ValueError(f"{row}: the image {image} lies outside of {self.folder}. Set `image_folder`.")
        if frames := frames_of(path):
            return frames
        if not path.is_file():
            raise FileNotFoundError(
                f"{row}: there is no image {path}. Fetch the benchmark's images, or set `image_folder` to where they "
                "are; results from a `scores_file` need none."
            )
        return [str(path)]
