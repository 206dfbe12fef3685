"""Pairs that show or say what a benchmark tests."""

from pathlib import Path

from ...benchmarks.benchmark_file import read_rows
from ...benchmarks.benchmark_images import BenchmarkImages
from ...benchmarks.contamination import ContentIndex, RowContent
from ...data.encoding import named_row
from ...data.messages import text_of


# Public benchmarks' names for the same things.
ID_COLUMNS = ("id", "ID", "pid")
# MathVista's `query` is its question with instructions around it, which no training row repeats.
PROMPT_COLUMNS = ("prompt", "question", "query", "Text")
RESPONSE_COLUMNS = ("response", "responses", "chosen", "rejected", "Output1", "Output2")
# MathVista names the file of its `decoded_image` in `image`. MMMU has seven columns.
IMAGE_COLUMNS = ("decoded_image", "image", "images", "Image", "video", *(f"image_{i}" for i in range(1, 8)))


class BenchmarkContent:
    """
    What is looked for of one benchmark.

    Args:
        name (`str`):
            What reasons call it.
        path (`str`):
            Its public file (JSON, JSONL or parquet), or its hub id.
        split (`str`, *optional*, defaults to `"test"`):
            The split on the hub.
        image_root (`str`, *optional*):
            Where its image paths begin. Defaults to the folder of the file.

    Attributes:
        images_not_read (`int`): Images that are not on disk or cannot be decoded, which nothing can be compared with.

    Raises:
        ValueError: If no column is known.
    """

    def __init__(self, name: str, path: str, split: str = "test", image_root: str | None = None):
        self.name, self.images_not_read = name, 0
        self.ids: set[str] = set()
        folder, contents = BenchmarkImages(image_root or Path(path).parent), []
        columns = ID_COLUMNS + PROMPT_COLUMNS + RESPONSE_COLUMNS + IMAGE_COLUMNS
        for i, row in enumerate(read_rows(str(path), (), columns, split)):
            self.ids |= {str(row[column]) for column in ID_COLUMNS if row[column] is not None}
            with named_row(f"benchmarks: {path}, row {i}"):
                prompt = next((text_of(row[column]) for column in PROMPT_COLUMNS if row[column]), "")
                responses = responses_of(row)
            shown = [column for column in IMAGE_COLUMNS if row[column]]
            shown = [column for column in shown if column != "image" or "decoded_image" not in shown]
            images = [image for column in shown for image in as_list(row[column])]
            content, n_not_read = RowContent.of_benchmark(prompt, responses, images, folder)
            contents.append(content)
            self.images_not_read += n_not_read
        self.contents = ContentIndex(contents)
        if not (self.contents.answer_keys or self.contents.pixel_hashes or self.images_not_read):
            raise ValueError(
                f"benchmarks: {path} has no column that is known: a prompt in {PROMPT_COLUMNS}, responses in "
                f"{RESPONSE_COLUMNS}, images in {IMAGE_COLUMNS}."
            )

    @classmethod
    def from_yaml(cls, entry: dict) -> "BenchmarkContent":
        """
        A benchmark from `entry`, one of the YAML's `benchmarks`.

        Raises:
            ValueError: For a key that does not exist, or one that is missing.
        """
        if set(entry) - {"split", "image_root"} != {"name", "path"}:
            raise ValueError(f"benchmarks: {entry} needs name and path, and may have split and image_root, no more.")
        return cls(**entry)

    def reasons(
        self, contents: list[RowContent], benchmark_ids: list[str | None], max_hamming_distance: int
    ) -> dict[int, str]:
        """
        Which rows share content with the benchmark, and why.

        Args:
            contents (`list[RowContent]`):
                What is compared of each row.
            benchmark_ids (`list[str | None]`):
                The id that the benchmark would give to each row, or `None`.
            max_hamming_distance (`int`):
                Bits of 64 in which the perceptual hashes of one image may differ.

        Returns:
            `dict[int, str]`: the reason of each contaminated row, by its number.
        """
        reasons = {}
        for i, reason in enumerate(self.contents.reasons(contents, max_hamming_distance)):
            if benchmark_ids[i] in self.ids:
                reasons[i] = f"{self.name} holds this row of the set by its id"
            elif reason is not None:
                reasons[i] = f"{self.name} holds {'a' if reason == 'similar image' else 'this'} {reason}"
        return reasons


def as_list(value) -> list:
    """A column's value as a list, whether it holds one or several."""
    return value if isinstance(value, list) else [value]


def is_list_of_responses(value) -> bool:
    """Whether a column holds several responses, rather than one as a string or as messages."""
    return isinstance(value, list) and not (value and isinstance(value[0], dict) and "role" in value[0])


def benchmark_row_ids(prefixes: list[str | None], indices: list[int]) -> list[str | None]:
    """
    The ids that a benchmark gives to rows of its source: VL-RewardBench's `RLAIF-V-14` is row 14 of RLAIF-V.

    Args:
        prefixes (`list[str | None]`):
            How the ids of each row's source begin, `None` where the benchmark does not name its rows.
        indices (`list[int]`):
            The number of each row in its source.
    """
    return [prefix and f"{prefix.rstrip('-')}-{i}" for prefix, i in zip(prefixes, indices, strict=True)]


def responses_of(row: dict) -> list[str]:
    """All responses of a benchmark's row, in whichever columns they are."""
    values = [row[column] for column in RESPONSE_COLUMNS if row[column]]
    return [text_of(text) for value in values for text in (value if is_list_of_responses(value) else [value])]
