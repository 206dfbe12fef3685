"""The images of a benchmark's rows, as its public file names them."""

from pathlib import Path


FRAMES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


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
        The images of each row; those of a video are its frames, in the order of their names.

        Raises:
            ValueError: If a path leaves the folder. A benchmark's file comes from others.
            FileNotFoundError: If there is no such image, or a folder without frames. The row is named.
        """
        return [[found for image in row["images"] for found in self._find(i, image)] for i, row in enumerate(rows)]

    def _find(self, i: int, image) -> list:
        if isinstance(image, dict) and image.get("bytes") is None:
            image = image["path"]
        if not isinstance(image, str):
            return [image]
        path = (self.folder / image).resolve()
        if not path.is_relative_to(self.folder):
            raise ValueError(f"Row {i}: the image {image} lies outside of {self.folder}. Set `image_folder`.")
        if path.is_dir() and (frames := sorted(str(f) for f in path.iterdir() if f.suffix.lower() in FRAMES)):
            return frames
        if not path.is_file():
            raise FileNotFoundError(
                f"Row {i}: there is no image {path}. Fetch the benchmark's images, or set `image_folder` to where they "
                "are; results from a `scores_file` need none."
            )
        return [str(path)]
