"""The pairs of all sources on their way through the steps, whose rules stand in `steps`."""

from collections import Counter

from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image, List, Value, concatenate_datasets

from ..benchmarks.contamination import RowContent
from ..data.content_groups import group_by_content
from ..data.messages import text_of
from ..data.text_keys import text_key
from ..data.videos.stored_videos import STORED
from .audit import CurationAudit
from .inspection import Signatures
from .pair import PART_MESSAGES, TEXT_MESSAGES, as_video_pair
from .source import PreferenceSource
from .steps.decontamination import BenchmarkContent, benchmark_row_ids
from .steps.duplicates import contradictions, duplicates
from .steps.filters import low_confidence, outside_limits, ties
from .steps.mixture import over_cap, over_share, split_and_order
from .steps.near_duplicates import near_duplicates
from .steps.same_pictures import SamePictures
from .steps.text_similarity import shingles
from .surrogate_scores import read_scores


LARGE = ("signature", "thumbnails")  # columns of the inspection that are not held as lists


class PairCuration:
    """
    Drops pairs step by step, and keeps the account of it.

    Args:
        pairs (`Dataset`):
            Pairs in the columns of `PAIR_FEATURES`, none of them skipped.
        inspected (`Dataset`):
            What [`PairInspection`] says of each.
        audit ([`CurationAudit`]):
            Where steps are recorded.

    Attributes:
        dropped (`list[dict]`): `id`, `source`, `index`, `origin`, `step` and `reason` of every pair that went.
    """

    def __init__(self, pairs: Dataset, inspected: Dataset, audit: CurationAudit):
        self.pairs, self.audit = pairs, audit
        self.texts = pairs.select_columns(["source", "index", "origin", "prompt", "chosen", "rejected"])
        names = ["source", "index", "rating_margin", "chosen_first", "score_chosen", "score_rejected"]
        self.columns = {name: pairs[name][:] for name in names}
        self.columns |= {name: inspected[name][:] for name in inspected.column_names if name not in LARGE}
        hashes = self.columns["perceptual_hashes"]
        self.columns["perceptual_hashes"] = [[int(digits, 16) for digits in row] for row in hashes]
        self.signatures = Signatures(inspected)
        self.same_pictures = SamePictures(pairs, inspected)
        self.kept = list(range(len(pairs)))
        self.dropped: list[dict] = []

    def column(self, name: str) -> list:
        """The column `name` of the pairs that are still there, as a list."""
        values = self.columns[name]
        return [values[i] for i in self.kept]

    def drop(self, step: str, reasons: dict[int, str], **details):
        """
        Take out pairs, and record the step.

        Args:
            step (`str`):
                Its name in the audit.
            reasons (`dict[int, str]`):
                Why a pair goes, by its position among those that are still there.
            **details:
                What else the audit says of the step.
        """
        gone = []
        for position, reason in sorted(reasons.items()):
            i = self.kept[position]
            row = self.texts[i]
            excerpt = f"{text_of(row['prompt'])} > {text_of(row['chosen'])}"[:200]
            gone.append({"source": row["source"], "index": row["index"], "reason": reason, "excerpt": excerpt})
            self.dropped.append(
                {"id": self.columns["id"][i], "source": row["source"], "index": row["index"]}
                | {"origin": row["origin"], "step": step, "reason": reason}
                | ({"image": self.columns["bad_image_path"][i]} if self.columns["bad_image_path"][i] else {})
            )
        self.kept = [i for position, i in enumerate(self.kept) if position not in reasons]
        kept = Counter(self.column("source"))
        self.audit.record_step(step, {name: kept[name] for name in self.audit.sources}, gone, **details)

    def drop_bad_images(self):
        """Quarantine pairs with an image that is refused or cannot be decoded."""
        self.drop("images", {i: reason for i, reason in enumerate(self.column("bad_image")) if reason})

    def drop_bad_texts(self):
        """Drop pairs that the collator would refuse: control tokens inside a text, placeholders without images."""
        self.drop("texts", {i: reason for i, reason in enumerate(self.column("bad_text")) if reason})

    def drop_ties(self, min_rating_margin: float | None):
        """Drop pairs of equal responses, and pairs whose ratings differ by less than `min_rating_margin`."""
        self.drop("ties", ties(*map(self.column, ("chosen_key", "rejected_key", "rating_margin")), min_rating_margin))

    def drop_outside_limits(self, max_tokens: int | None, max_characters: int | None):
        """Drop pairs with a side of more than `max_tokens` tokens, or a response of more than `max_characters`."""
        limits = outside_limits(self.column("n_tokens"), self.column("n_characters"), max_tokens, max_characters)
        self.drop("limits", limits)

    def keys(self) -> list[tuple]:
        """Hashes of prompt, images, chosen and rejected response of each pair."""
        images = [tuple(hashes) for hashes in self.column("pixel_hashes")]
        columns = (self.column("prompt_key"), images, self.column("chosen_key"), self.column("rejected_key"))
        return list(zip(*columns, strict=True))

    def drop_contradictions(self):
        """Drop pairs whose responses another pair with the same prompt and images prefers the other way round."""
        self.drop("contradictions", contradictions(self.keys()))

    def drop_duplicates(self):
        """Of pairs that are equal in prompt, images and responses, keep the first."""
        sources = self.column("source")
        reasons = {i: f"equal to a pair of {sources[first]}" for i, first in duplicates(self.keys()).items()}
        self.drop("duplicates", reasons)

    def drop_near_duplicates(self, min_similarity: float, max_hamming_distance: int):
        """
        Of pairs that are nearly equal, keep the first. Where nearly the same responses are preferred the other way
        round, none is kept.

        Args:
            min_similarity (`float`):
                Least Jaccard similarity of each response to its counterpart, from 0 to 1.
            max_hamming_distance (`int`):
                Bits of 64 in which the perceptual hashes of one image may differ.
        """
        sources, kept = self.column("source"), self.kept

        def shingle_sets(i: int) -> tuple[set, set]:
            row = self.texts[kept[i]]
            return shingles(text_of(row["chosen"])), shingles(text_of(row["rejected"]))

        def same_pictures(i: int, others: list[int]) -> list[int]:
            position = {kept[j]: j for j in others}
            return [position[row] for row in self.same_pictures(kept[i], list(position))]

        alike, opposed = near_duplicates(
            self.column("prompt_words"),
            list(zip(self.column("chosen_key"), self.column("rejected_key"), strict=True)),
            lambda i: self.signatures[kept[i]],
            self.column("perceptual_hashes"),
            shingle_sets,
            min_similarity,
            max_hamming_distance,
            same_pictures,
        )
        reasons = {i: f"nearly equal to a pair of {sources[j]}" for i, j in alike.items()}
        both = {row for pair in opposed.items() for row in pair}
        reasons |= dict.fromkeys(both, "nearly the same responses are preferred the other way round")
        self.drop("near-duplicates", reasons)

    def drop_contaminated(
        self, benchmark: BenchmarkContent, sources: list[PreferenceSource], max_hamming_distance: int
    ):
        """
        Drop pairs that show or say what a benchmark tests.

        Args:
            benchmark ([`BenchmarkContent`]):
                The benchmark.
            sources (`list[PreferenceSource]`):
                The sources of the pairs, whose rows the benchmark may name.
            max_hamming_distance (`int`):
                Bits of 64 in which the perceptual hashes of one image may differ.
        """
        prefixes = {source.name: source.benchmark_id_prefix for source in sources}
        ids = benchmark_row_ids([prefixes[source] for source in self.column("source")], self.column("index"))
        columns = map(self.column, ("prompt_key", "answer_keys", "pixel_hashes", "perceptual_hashes"))
        contents = [RowContent(*values, has_image=bool(values[2])) for values in zip(*columns, strict=True)]
        reasons = benchmark.reasons(contents, ids, max_hamming_distance)
        self.drop(f"decontamination: {benchmark.name}", reasons, benchmark_images_not_read=benchmark.images_not_read)

    def drop_low_confidence(
        self, scores_file: str | None, min_chosen_score: float | None, min_score_margin: float | None
    ) -> list[dict]:
        """
        Drop what the surrogate has little confidence in, and return it with its texts, for someone to repair. Pairs
        that it has not scored go, too: those that balance and mixture took out of the round that was scored.

        Args:
            scores_file (`str`, *optional*):
                JSONL with `id` and `scores` (chosen, rejected), as `recipes/evaluate_reward.py` writes it. Without it,
                the pairs' own scores are used.
            min_chosen_score (`float`, *optional*), min_score_margin (`float`, *optional*):
                A pair stays from this score of the chosen response on, and from this difference of its scores on.

        Returns:
            `list[dict]`: the scored pairs that went, each with `id`, `source`, `index`, texts, scores and `reason`.

        Raises:
            ValueError: If no pair has scores.
        """
        scores = list(zip(self.column("score_chosen"), self.column("score_rejected"), strict=True))
        if scores_file:
            by_id = read_scores(scores_file)
            scores = [by_id.get(id, (None, None)) for id in self.column("id")]
        if all(None in pair for pair in scores):
            raise ValueError(
                f"None of {len(scores):,} pairs has surrogate scores. Score the pairs that are written without "
                "`min_chosen_score` and `min_score_margin`, with the same seed, and give the result as `scores_file`."
            )
        reasons, to_repair = low_confidence(scores, min_chosen_score, min_score_margin), []
        for position, (i, (chosen, rejected)) in enumerate(zip(self.kept, scores, strict=True)):
            self.columns["score_chosen"][i], self.columns["score_rejected"][i] = chosen, rejected
            if position in reasons and None not in (chosen, rejected):
                row = {key: self.texts[i][key] for key in ("source", "index", "prompt", "chosen", "rejected")}
                row |= {"score_chosen": chosen, "score_rejected": rejected, "reason": reasons[position]}
                to_repair.append({"id": self.columns["id"][i], **row})
        self.drop("surrogate", reasons)
        return to_repair

    def balance(self, max_chosen_first_fraction: float | None, max_chosen_longer_fraction: float | None, seed: int):
        """
        Leave pairs out, per source, until the chosen response is not on one side too often.

        Args:
            max_chosen_first_fraction (`float`, *optional*):
                The largest share of pairs whose chosen response was shown first, or second.
            max_chosen_longer_fraction (`float`, *optional*):
                The largest share of pairs whose chosen response is the longer, or the shorter.
            seed (`int`):
                Decides which pairs go.
        """
        ids, sources = self.column("id"), self.column("source")
        longer = [None if one == two else one > two for one, two in self.column("n_characters")]
        first, reasons = self.column("chosen_first"), {}
        for sides, fraction, reason in (
            (first, max_chosen_first_fraction, "side balance: where the chosen response was shown"),
            (longer, max_chosen_longer_fraction, "side balance: which response is the longer"),
        ):
            for source in sorted(set(sources)) if fraction is not None else []:
                rows = [i for i, name in enumerate(sources) if name == source and i not in reasons]
                gone = over_share([ids[i] for i in rows], [sides[i] for i in rows], fraction, seed)
                reasons |= {rows[i]: reason for i in gone}
        self.drop("side balance", reasons)

    def draw_mixture(self, sources: list[PreferenceSource], seed: int):
        """Leave pairs out by the `max_pairs` and the `weight` of each of `sources`. The `seed` decides which."""
        caps = {source.name: source.max_pairs for source in sources}
        weights = {source.name: source.weight for source in sources}
        self.drop("mixture", over_cap(self.column("id"), self.column("source"), caps, weights, seed))

    def datasets(self, test_fraction: float, seed: int) -> DatasetDict:
        """
        The pairs that are left, as `train` and `test`, in the preference format. No image is in both. Where no pair is
        left, there is no split.

        Args:
            test_fraction (`float`):
                The share of pairs that `test` has.
            seed (`int`):
                Decides which, and the order.
        """
        shown = zip(self.column("pixel_hashes"), self.column("prompt_key"), strict=True)
        groups = group_by_content([set(pixels) or {prompt} for pixels, prompt in shown])
        ids = self.column("id")
        if not ids:
            return DatasetDict()
        train, test = split_and_order(ids, groups, test_fraction, seed)
        names = ["source", "prompt", "images", "chosen", "rejected"]
        with_scores = None not in self.column("score_chosen")
        extra = {"id": Value("string")}
        extra |= {"score_chosen": Value("float64"), "score_rejected": Value("float64")} if with_scores else {}
        splits = {}
        for split, positions in ({"train": train} | ({"test": test} if test else {})).items():
            rows = [self.kept[position] for position in positions]
            added = Dataset.from_dict({key: [self.columns[key][i] for i in rows] for key in extra}, Features(extra))
            pairs = concatenate_datasets([added, self.pairs.select(rows).select_columns([*names, "is_video"])], axis=1)
            pairs = with_videos(pairs)
            splits[split] = with_content_fingerprint(pairs, added["id"][:])
        return DatasetDict(splits)


def with_videos(pairs: Dataset) -> Dataset:
    """`pairs` without `is_video`. They have `videos` where it was set in one of them."""
    if not any(pairs["is_video"]):
        return pairs.remove_columns("is_video")
    features = Features({"prompt": PART_MESSAGES, "images": pairs.features["images"], "videos": STORED})
    columns = ["prompt", "images", "is_video"]
    shown = pairs.select_columns(columns).map(as_video_pair, remove_columns=["is_video"], features=features)
    return concatenate_datasets([pairs.remove_columns(columns), shown], axis=1)


def with_content_fingerprint(dataset: Dataset, ids: list[str]) -> Dataset:
    """
    The dataset without the traces of how it came about, which differ from run to run: `save_to_disk` writes the
    fingerprint and the download's checksums next to the data. The new fingerprint is a hash of the rows' `ids`.
    """
    dataset = dataset.flatten_indices(keep_in_memory=False)
    types = {"images": List(Image()), "prompt": PART_MESSAGES, "chosen": TEXT_MESSAGES, "rejected": TEXT_MESSAGES}
    features = Features({name: types.get(name, feature) for name, feature in dataset.features.items()})
    fingerprint = f"{text_key(*ids):016x}"
    return Dataset(dataset.cast(features).data, DatasetInfo(features=features), fingerprint=fingerprint)
