"""Public rows to pairs, whatever the rows hold: what is no pair becomes a reason, never an error."""

import json
from collections.abc import Callable

import pyarrow as pa

from ..data.images import confined_path, data_url_bytes, fetch_image
from .pair import PAIR_FEATURES, Unusable


def convert(
    batch: dict[str, list],
    pairs: Callable,
    source: str,
    root: str | None,
    allow_urls: bool,
    frames_as_images: bool = True,
) -> dict[str, list]:
    """
    A batch of public rows to a batch of pairs and skipped rows, in [`PAIR_FEATURES`].

    Args:
        batch (`dict[str, list]`):
            The rows' columns. Their numbers are in `__index__`. A column `text` alone holds the rows as JSON.
        pairs (`Callable`):
            That of the set's format: from a row and `root` to its pairs.
        source (`str`):
            What the set is called.
        root (`str`, *optional*):
            The folder of its images.
        allow_urls (`bool`):
            Whether images that are given as URLs are fetched.
        frames_as_images (`bool`, *optional*, defaults to `True`):
            Whether the frames of a video are images of their own. Else the pair is marked as one with a video.
    """
    outcomes = []
    for i, index in enumerate(batch["__index__"]):
        row, of_row = {key: values[i] for key, values in batch.items() if key != "__index__"}, []
        try:
            if set(row) == {"text"}:
                row = json.loads(row["text"])
            if not isinstance(row, dict):
                row = {"text": row}
                raise Unusable("the row is not an object with named columns")
            if row.get("videos"):
                raise Unusable("videos")
            of_row += pairs(row, root)
        except Unusable as reason:
            of_row.append({"skipped": str(reason)})
        except json.JSONDecodeError:
            of_row.append({"skipped": "the line is not JSON"})
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, OSError, RecursionError) as error:
            of_row.append({"skipped": f"the row is not in the set's schema ({type(error).__name__}: {error})"})
        for outcome in of_row:
            texts = {key: value for key, value in row.items() if not key.startswith("image")}
            excerpt = str(texts)[:300] if outcome.get("skipped") else None
            if outcome.get("images"):
                outcome["images"] = [located(image, root, allow_urls) for image in outcome["images"]]
            outcome["is_video"] = bool(outcome.get("is_video")) and not frames_as_images
            outcome["origin"] = None if outcome.get("origin") is None else str(outcome["origin"])
            outcomes.append({**outcome, "source": source, "index": index, "excerpt": excerpt})
    outcomes = storable(outcomes)
    return {key: [outcome.get(key) for outcome in outcomes] for key in PAIR_FEATURES}


def storable(outcomes: list[dict]) -> list[dict]:
    """The `outcomes`, with those as skipped that Arrow cannot hold: a role that is a number, half a character."""
    try:
        pa.Table.from_pylist(outcomes, schema=PAIR_FEATURES.arrow_schema)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if len(outcomes) > 1:
            return [one for outcome in outcomes for one in storable([outcome])]
        reason = f"a value is not of the type that the column needs ({type(error).__name__})"
        known = {key: outcomes[0][key] for key in ("source", "index")}
        return [{**known, "skipped": reason, "excerpt": ascii(outcomes[0])[:300]}]
    return outcomes


def located(image: dict, root: str | None, allow_urls: bool) -> dict:
    """
    An image with its path made absolute inside the image root, or its URL fetched. What is refused gets the reason in
    place of its path, where the inspection finds it: the row must not be lost without a line in the audit.

    Args:
        image (`dict`):
            `{"bytes": ..., "path": ...}`, with a path relative to `root`, a URL or a data URL.
        root (`str`, *optional*):
            The folder that images may come from.
        allow_urls (`bool`):
            Whether a URL is fetched. Else it is refused.
    """
    if not isinstance(image, dict) or image.get("bytes") is None and not isinstance(image.get("path"), str):
        return {"bytes": None, "path": f"refused: {str(image)[:100]}: it is neither bytes nor a path"}
    if image.get("bytes") is not None:
        return image
    try:
        if image["path"].startswith("data:"):
            return {"bytes": data_url_bytes(image["path"]), "path": None}
        if allow_urls and "://" in image["path"]:
            return fetch_image(image["path"])
        return {"bytes": None, "path": confined_path(image["path"], root)}
    except ValueError as error:
        reason = str(error).removeprefix(image["path"]).strip()
        return {"bytes": None, "path": f"refused: {image['path'][:1000].replace(': ', ':') or 'no path'}: {reason}"}
