"""The rows of the gallery: labelled pairs, held-out pairs, and responses that MPO changed."""

import base64
import hashlib
import io
import json

from datasets import Dataset, Image

from ..data.images import image_key, load_image
from ..data.videos.video import first_frame
from ..data.videos.video_source import video_key
from .run_files import RunFiles
from .visible import visible


THUMBNAIL = 96  # pixels of the longer side
WORDS = {True: "right", False: "wrong", None: "unreadable"}


class Thumbnails:
    """Small pictures as data URLs, each kept once."""

    def __init__(self):
        self.urls: dict[str, int] = {}
        self.places: dict[bytes, tuple[int, int]] = {}

    def add(self, source: dict, is_video: bool = False) -> tuple[int, int] | None:
        """
        The place of a picture that is not decoded yet, or of a video's first frame, and how many frames there are;
        `None` where it cannot be decoded.
        """
        try:
            plain = (video_key if is_video else image_key)(source)
            key = hashlib.sha256(repr(plain).encode()).digest()
            if key not in self.places:
                picture, frames = first_frame(source) if is_video else (load_image(source), 1)
                picture.thumbnail((THUMBNAIL, THUMBNAIL))
                picture.save(out := io.BytesIO(), "JPEG", quality=70)
                url = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
                self.places[key] = self.urls.setdefault(url, len(self.urls)), frames
            return self.places[key]
        except ValueError:
            return None


def text_of(messages: list[dict] | str) -> str:
    """The words of messages, with a mark where a picture or a video stands."""
    if isinstance(messages, str):
        return messages
    texts = []
    for message in messages:
        blocks = message["content"]
        texts += [blocks] if isinstance(blocks, str) else [part.get("text") or f"[{part['type']}]" for part in blocks]
    return "\n".join(texts)


def undecoded(dataset: Dataset) -> Dataset:
    """The same rows, with the bytes or paths of their images."""
    if "images" not in dataset.column_names:
        return dataset
    feature = dataset.features["images"]
    return dataset.cast_column("images", type(feature)(Image(decode=False)))


def most_telling(rows: list[dict], limit: int) -> list[dict]:
    """Of `rows` all errors, the most confident first, then others at even distances, `limit` in all."""
    errors = sorted((row for row in rows if row["correct"] is False), key=lambda row: -abs(row["margin"]))[:limit]
    others, room = [row for row in rows if row["correct"] is not False], limit - len(errors)
    step = max(1, -(-len(others) // max(1, room)))
    return errors + others[::step][:room]


def labelled_pairs(run: RunFiles, limit: int) -> tuple[list[dict], int]:
    """Pairs that a rule made; a pair is wrong where the verifier prefers the rejected response."""
    dataset = run.dataset("label_preferences/preferences")
    if dataset is None:
        return [], 0
    candidates = run.dataset("sample_responses/candidates")
    answers = {}
    if candidates is not None and "answer" in candidates.column_names:
        answers = dict(zip(candidates["id"][:], candidates["answer"][:], strict=True))
    rows = []
    pictures = [name for name in ("images", "videos") if name in dataset.column_names]
    for place, row in enumerate(dataset.remove_columns(pictures)):
        texts, answer = [text_of(row["chosen"]), text_of(row["rejected"])], answers.get(row["id"])
        words = [run.verify(text, answer) if answer is not None else None for text in texts]
        # A rule of correctness alone writes no scores: its pairs have no margin.
        scores = [row.get("score_chosen"), row.get("score_rejected")]
        gap = scores[0] - scores[1] if None not in scores else 0.0
        correct = None if bool(words[0]) == bool(words[1]) else bool(words[0])
        rows.append(
            {"kind": "labelled", "place": place, "id": row["id"], "source": row["rule"], "prompt": row["prompt"]}
            | {"chosen": texts[0], "rejected": texts[1], "scores": scores, "margin": gap, "correct": correct}
            | {"words": [WORDS[word] if answer is not None else "no answer" for word in words]}
        )
    return with_pictures(most_telling(rows, limit), dataset), len(rows)


def heldout_pairs(run: RunFiles, limit: int) -> tuple[list[dict], int]:
    """Pairs that the reward model was measured on; a pair is wrong where the rejected response scores higher."""
    scored = run.pair_scores
    dataset = run.dataset("preferences", "test") if scored else None
    places = {id: place for place, id in enumerate(dataset["id"][:])} if dataset is not None else {}
    rows = []
    for line in scored:
        gap = line["scores"][0] - line["scores"][1]
        source = line.get("source") or line.get("subset") or ""
        rows.append(
            {"kind": "held-out", "place": places.get(line.get("id")), "id": str(line.get("id")), "source": source}
            | {"scores": line["scores"], "margin": gap, "correct": None if gap == 0 else gap > 0, "words": ["", ""]}
        )
    return with_pictures(most_telling(rows, limit), dataset), len(rows)


def with_pictures(rows: list[dict], dataset: Dataset | None) -> list[dict]:
    """The rows with the texts and undecoded pictures of their places in the data set."""
    known = [row for row in rows if row["place"] is not None]
    found = undecoded(dataset).select([row["place"] for row in known]) if dataset is not None and known else []
    for row, data in zip(known, found, strict=True):
        row |= {"prompt": data["prompt"], "images": data.get("images") or [], "videos": data.get("videos") or []}
        row |= {"chosen": text_of(data["chosen"]), "rejected": text_of(data["rejected"])}
    return rows


def gallery_rows(run: RunFiles, limit: int, thumbnails: Thumbnails) -> tuple[list[dict], dict[str, list[int]]]:
    """
    What the page's script draws.

    Args:
        run ([`RunFiles`]):
            The run.
        limit (`int`):
            The most rows of each kind.
        thumbnails ([`Thumbnails`]):
            Where the pictures are kept.

    Returns:
        `tuple[list[dict], dict]`: the rows, and how many of each kind are shown of how many.
    """
    rows, counts = [], {}
    for kind, collect in {"labelled": labelled_pairs, "held-out": heldout_pairs}.items():
        shown, total = collect(run, limit)
        if total:
            counts[kind] = [len(shown), total]
        for row in shown:
            pictures = [thumbnails.add(image) for image in row.pop("images", [])]
            videos = [thumbnails.add(video, is_video=True) for video in row.pop("videos", [])]
            row |= {"run": run.name, "pictures": [place for place, _ in filter(None, pictures)]}
            row |= {"videos": [*filter(None, videos)], "unreadable_pictures": (pictures + videos).count(None)}
            row["prompt"] = text_of(row.get("prompt", ""))
            del row["place"]
            rows.append(json.loads(json.dumps(row), object_hook=all_visible))
    return rows, counts


def all_visible(row: dict) -> dict:
    """A row whose texts hide nothing, see [`visible`]."""
    return {key: visible(value) if isinstance(value, str) else value for key, value in row.items()}
