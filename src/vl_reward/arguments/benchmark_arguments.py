"""What the recipes are told that measure on preferences or on a public benchmark."""

from dataclasses import dataclass, field

from .dataset_arguments import DatasetArguments


OPEN_SCHEMA = "video_rewardbench"  # its public file was not seen, so its columns can be named


@dataclass
class BenchmarkArguments(DatasetArguments):
    """
    [`DatasetArguments`] of a recipe that measures on held-out preferences or on a public benchmark.

    Parameters:
        benchmark (`str`, *optional*):
            The benchmark's name. Without it, `dataset_name` is read. A recipe says which ones it knows.
        data_files (`str`, *optional*):
            The benchmark's file. Without it, the benchmark is read from the hub.
        image_folder (`str`, *optional*):
            Where the benchmark's paths of images and videos begin. Without it, at the folder of its file.
        frames_as_images (`bool`, *optional*, defaults to `False`):
            Whether the frames of a video that is a folder are read as images of their own.

    Raises:
        ValueError: If `columns` is given for a benchmark whose columns are known.
    """

    benchmark: str | None = field(default=None, metadata={"help": "The benchmark to measure on."})
    data_files: str | None = field(default=None, metadata={"help": "The benchmark's file. Default: from the hub."})
    image_folder: str | None = field(default=None, metadata={"help": "The folder of image paths. Default: the file's."})
    frames_as_images: bool = field(default=False, metadata={"help": "Whether a video's frames are read as images."})

    def __post_init__(self):
        super().__post_init__()
        if self.columns is not None and self.benchmark not in (None, OPEN_SCHEMA):
            raise ValueError(
                f"`columns` is of `dataset_name` and of {OPEN_SCHEMA}, and `benchmark: {self.benchmark}` is read in "
                "its own schema. Remove it."
            )

    @property
    def load_options(self) -> dict:
        """What a benchmark's `load` is given besides its file."""
        return {} if self.columns is None else {"columns": self.columns}
