"""Each step of curation on planted pairs: what goes, why, and that all else stays."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image, ImageDraw

from vl_reward.benchmarks import vl_rewardbench
from vl_reward.benchmarks.report.training_overlap import TrainingOverlap
from vl_reward.curation import (
    BenchmarkContent,
    CurationAudit,
    OutputFolder,
    PairCuration,
    PairInspection,
    PreferenceSource,
)
from vl_reward.curation.inspection import Signatures, inspect_images
from vl_reward.curation.pair import PAIR_FEATURES, build_pair
from vl_reward.curation.steps.decontamination import benchmark_row_ids
from vl_reward.curation.steps.duplicates import contradictions, duplicates
from vl_reward.curation.steps.filters import low_confidence, outside_limits, ties
from vl_reward.curation.steps.mixture import over_cap, over_share, split_and_order
from vl_reward.curation.steps.near_duplicates import hash_pieces, near_duplicates
from vl_reward.curation.steps.text_similarity import jaccard, shingles, signature, words_key
from vl_reward.curation.surrogate_scores import read_scores
from vl_reward.data.content_groups import group_by_content
from vl_reward.data.encoding import encode_conversations
from vl_reward.data.image_similarity import hamming_distances, perceptual_hash, pixel_hash, same_picture, thumbnail
from vl_reward.data.messages import as_messages
from vl_reward.data.text_keys import normalize, text_key
from vl_reward.tiny.preferences import as_png


SAMPLES = Path(__file__).parent.parent.parent / "shared/fixtures"  # real public records, not part of the project
LONG = "the quick brown fox jumps over the lazy dog near the old river bank while children play in warm evening light"
OTHER = "a steam train crosses the high stone bridge above a green valley where sheep graze beside two wooden cabins"
WORSE = "there is nothing at all to be seen in this picture except a plain white wall and perhaps some grey shadow"


def photo(seed):
    """A picture with structure at all scales, unlike others."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    image = image.resize((160, 120), Image.Resampling.BICUBIC)
    for _ in range(6):
        x, y = rng.integers(0, 120, 2).tolist()
        ImageDraw.Draw(image).ellipse([x, y, x + 40, y + 30], fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def test_normalized_texts_and_their_keys():
    assert normalize("  <image>\nＡ  Cat\t") == "a cat"
    assert text_key("A cat.", "B") == text_key(" a\nCAT. ", "b") != text_key("B", "A cat.")
    assert 0 <= text_key("x") < 2**63


def test_shingles():
    assert shingles("One two, three four") == {"|one two three", "|two three four"}
    assert shingles("Yes.") == {"|yes"} and shingles("?!") == {"|?!"}
    assert shingles("see 4 and 5") == {"4 5|see 4 and", "4 5|4 and 5"}
    assert jaccard(shingles("see 4 and 5"), shingles("see 4 and 6")) == 0
    assert jaccard({1, 2}, {2, 3}) == 1 / 3


def test_words_key_knows_signs_from_punctuation():
    assert words_key("Is it <image>\n(red), or not?") == words_key("is it red or  NOT")
    assert len({words_key(text) for text in ("3 + 5?", "3 - 5?", "3 5?", "35?", "3 = 5?")}) == 5
    assert words_key("?!") != words_key("!?") and 0 <= words_key("x") < 2**63


def test_signature_estimates_similarity_and_knows_no_order():
    one, two = f"{LONG} {OTHER}", f"{LONG} {OTHER} and more"
    assert (signature(one, WORSE) == signature(WORSE, one)).all()
    estimate = (signature(one) == signature(two)).mean()
    assert estimate == pytest.approx(jaccard(shingles(one), shingles(two)), abs=0.1)
    assert signature(one).shape == (128,) and signature(one).dtype == np.uint32


def test_image_hashes():
    image = photo(0)
    assert pixel_hash(image) == pixel_hash(image.copy()) != pixel_hash(image.rotate(180))
    assert pixel_hash(Image.new("RGB", (2, 3))) != pixel_hash(Image.new("RGB", (3, 2)))
    same = perceptual_hash(image.resize((80, 60), Image.Resampling.LANCZOS))
    assert (perceptual_hash(image) ^ same).bit_count() <= 4
    others = [perceptual_hash(photo(seed)) for seed in range(1, 20)]
    distances = hamming_distances(np.array([perceptual_hash(image)], np.uint64), np.array(others, np.uint64))
    assert distances.shape == (1, 19) and distances.min() >= 12
    assert hamming_distances(np.array([0b1011], np.uint64), np.array([0b0010, 2**63], np.uint64)).tolist() == [[2, 4]]


def test_a_path_beside_bytes_is_a_name_only():
    image = as_png([{"images": [photo(0)]}])[0]["images"][0] | {"path": "refused: by name"}
    hashes = pixel_hash(photo(0)), f"{perceptual_hash(photo(0)):016x}"
    assert inspect_images([image], {}) == ([(*hashes, thumbnail(photo(0)).tobytes())], None, None)
    refused = {"bytes": None, "path": "refused: a.png: leads out"}
    assert inspect_images([image, refused], {}) == ([], "leads out", "a.png")


def test_contradictions_and_duplicates():
    keys = [(1, (), 7, 8), (1, (), 8, 7), (1, (), 7, 8), (1, ("a",), 7, 8), (2, (), 7, 8), (2, (), 7, 8)]
    assert sorted(contradictions(keys)) == [0, 1, 2]
    assert duplicates(keys) == {2: 0, 5: 4}


def test_signatures_stay_in_their_file(tmp_path):
    """2,500 rows are three chunks of it."""
    rows = np.arange(2500 * 128, dtype=np.uint32).reshape(2500, 128)
    inspected = Dataset.from_dict({"signature": [row.tobytes() for row in rows]}).map(
        lambda row: row, cache_file_name=str(tmp_path / "inspected.arrow")
    )
    signatures = Signatures(inspected)
    assert signatures.column.num_chunks == 3
    assert all((signatures[i] == rows[i]).all() for i in (0, 999, 1000, 2499))
    assert not signatures[0].flags.owndata


def near(rows, images, min_similarity=0.65, max_hamming_distance=4):
    """[`near_duplicates`] of texts."""
    return near_duplicates(
        [words_key(prompt) for prompt, _, _ in rows],
        [tuple(map(text_key, responses)) for _, *responses in rows],
        lambda i: signature(*rows[i][1:]),
        images,
        lambda i: tuple(map(shingles, rows[i][1:])),
        min_similarity,
        max_hamming_distance,
        lambda i, others: others,
    )


def test_near_duplicates_by_texts():
    rows = [
        (LONG, OTHER, WORSE),
        (f"{LONG.upper()}?", OTHER.replace("green", "deep"), WORSE),  # one word of twenty
        (LONG, WORSE, OTHER.replace("green", "deep")),  # the same the other way round
        (LONG, LONG, WORSE),  # another answer
        (LONG, f"{OTHER} 4", WORSE),  # another number
        (LONG.replace("fox", "cat"), OTHER, WORSE),  # one word of the prompt: another question
        (LONG + OTHER, "yes", "no"),
        (LONG + OTHER, "maybe", "no"),  # a long prompt in common does not make it near
        ("What is 3 + 5?", "8", "9"),
        ("What is 3 - 5?", "8", "9"),
    ]
    assert near(rows, [[]] * len(rows)) == ({1: 0}, {2: 0})
    assert near(rows, [[]] * len(rows), min_similarity=0.9) == ({}, {2: 1})  # the same words


def test_many_pairs_of_one_text_are_compared_by_pieces_of_their_images_hash():
    rng = np.random.default_rng(0)
    hashes = [[int(one)] for one in rng.integers(0, 2**64, 2000, dtype=np.uint64)]
    changed = [[one ^ 0b1001 << i % 60] for i, (one,) in enumerate(hashes)]
    alike, opposed = near([("Is there a person?", "Yes.", "No.")] * 4000, hashes + changed)
    assert alike == {2000 + i: i for i in range(2000)} and opposed == {}


def test_hash_pieces():
    assert hash_pieces([], 4) == [(0, 0, 0)]
    pieces = hash_pieces([0xF0F0_1234_5678_9ABC, 7], 3)
    assert pieces == [(2, 0, 0x9ABC), (2, 16, 0x5678), (2, 32, 0x1234), (2, 48, 0xF0F0)]
    assert hash_pieces([2**63], 0) == [(1, 0, 2**63)]


def test_near_duplicates_need_the_same_images_and_hold_in_both_orders():
    rows, changed = (LONG, OTHER, WORSE), (LONG, OTHER.replace("green", "deep"), WORSE)
    images = [[0b0000], [0b111111], [0b0001], [0b0000, 0b0000], [0b111110]]
    alike, opposed = near([rows, changed, changed, changed, rows], images)
    assert alike == {2: 0, 4: 1} and opposed == {}


def test_ties():
    reasons = ties([1, 2, 3, 4], [1, 5, 6, 7], [None, 0.1, 0.2, None], 0.15)
    assert reasons == {
        0: "both responses are equal",
        1: "near-tie: the set's ratings differ by less than min_rating_margin",
    }
    assert list(ties([1, 2], [1, 5], [None, 0.1], None)) == [0]


def test_limits_and_low_confidence():
    reasons = outside_limits([10, 11, None], [[5, 5], [5, 5], [3, 9]], 10, 8)
    assert reasons == {1: "more tokens than max_tokens", 2: "a response with more characters than max_characters"}
    assert outside_limits([10], [[5, 5]], None, None) == {}
    reasons = low_confidence([(0.0, -5.0), (2.0, 1.5), (2.0, 1.0), (-1.0, 3.0)], 0.0, 1.0)
    assert reasons == {
        1: "the surrogate's scores differ by less than min_score_margin",
        3: "the surrogate scores the chosen response below min_chosen_score",
    }


def test_side_balance():
    ids = [f"id {i}" for i in range(100)]
    sides = [True] * 70 + [False] * 20 + [None] * 10
    gone = over_share(ids, sides, 0.6, seed=0)
    assert len(gone) == 40 and max(gone) < 70  # 30 of 50 are left on the larger side
    assert gone == over_share(ids, sides, 0.6, seed=0) != over_share(ids, sides, 0.6, seed=1)
    assert over_share(ids, [True] * 100, 0.6, seed=0) == over_share(ids, sides, 0.9, seed=0) == set()
    assert over_share(ids, sides, 1.0, seed=0) == set()


def test_caps_and_weights():
    ids, sources = [str(i) for i in range(100)], ["a"] * 60 + ["b"] * 40
    none = {"a": None, "b": None}
    left_out = over_cap(ids, sources, {"a": 50, "b": None}, none, seed=0)
    assert len(left_out) == 10 and set(left_out.values()) == {"over the source's max_pairs"}
    assert over_cap(ids, sources, none, none, seed=0) == {}
    left_out = over_cap(ids, sources, none, {"a": 1.0, "b": 2.0}, seed=0)  # 20 and 40
    assert len(left_out) == 40 and all(i < 60 for i in left_out)
    shuffled = ids[::-1]
    again = over_cap(shuffled, sources[::-1], none, {"a": 1.0, "b": 2.0}, seed=0)
    assert {ids[i] for i in left_out} == {shuffled[i] for i in again}  # the order of rows does not matter
    with pytest.raises(ValueError, match="Give every source a weight, or none"):
        over_cap(ids, sources, none, {"a": 1.0, "b": None}, seed=0)


def test_groups_and_split():
    groups = group_by_content([{"x"}, {"y"}, {"x", "z"}, {"z"}, {"w"}])
    assert groups == [0, 1, 0, 0, 4]
    contents = [{f"image {i // 3}"} for i in range(600)]
    ids = [f"id {i}" for i in range(600)]
    train, test = split_and_order(ids, group_by_content(contents), 0.25, seed=3)
    assert sorted(train + test) == list(range(600)) and 90 < len(test) < 210
    assert {i // 3 for i in train}.isdisjoint(i // 3 for i in test)
    for part in (train, test):
        assert all(len({i // 3 for i in part[k : k + 3]}) == 1 for k in range(0, len(part), 3))  # neighbours
    assert train != sorted(train)
    assert split_and_order(ids, group_by_content(contents), 0.0, seed=3)[1] == []


def make(rows):
    """Pairs and their inspection, of `(source, prompt, chosen, rejected, image)`."""
    pairs = []
    for i, (source, prompt, chosen, rejected, image) in enumerate(rows):
        images = as_png([{"images": [image]}])[0]["images"] if image is not None else []
        pair = build_pair(prompt, chosen, rejected, images)
        pairs.append(dict.fromkeys(PAIR_FEATURES) | pair | {"source": source, "index": i})
    return Dataset.from_list(pairs, PAIR_FEATURES)


@pytest.fixture
def curate(tmp_path):
    def build(rows, processor=None):
        pairs, audit = make(rows), CurationAudit({})
        for name in dict.fromkeys(row[0] for row in rows):
            n = sum(row[0] == name for row in rows)
            audit.record_source(name, n, n, [], path="x", license="y")
        return PairCuration(pairs, PairInspection(processor)(pairs, tmp_path), audit)

    return build


def why(curation):
    """The step and reason of each dropped row."""
    return {row["index"]: (row["step"], row["reason"]) for row in curation.dropped}


def test_duplicates_across_sources_and_the_audit(curate):
    image = photo(0)
    curation = curate(
        [
            ("a", "What?", OTHER, WORSE, image),
            ("a", "What else?", OTHER, WORSE, image),
            ("b", "what? ", OTHER.upper(), WORSE, image),
            ("b", "What?", OTHER, WORSE, photo(1)),
            ("b", "Why?", OTHER, WORSE, None),
            ("c", "Why?", WORSE, OTHER, None),
        ]
    )
    curation.drop_contradictions()
    curation.drop_duplicates()
    reverse = ("contradictions", "the same responses are preferred the other way round")
    assert why(curation) == {4: reverse, 5: reverse, 2: ("duplicates", "equal to a pair of a")}
    assert curation.kept == [0, 1, 3]
    one, two = curation.audit.steps
    assert (one["in"], one["out"], two["in"], two["out"]) == (6, 4, 4, 3)
    assert two["sources"]["b"] == {"in": 2, "out": 1, "dropped": {"equal to a pair of a": 1}}
    assert one["sources"]["c"] == {"in": 1, "out": 0, "dropped": {reverse[1]: 1}}
    assert two["examples"]["equal to a pair of a"][0]["excerpt"].startswith("what?  > A STEAM TRAIN")
    curation.audit.check()
    assert any("| duplicates | b | 2 | 1 | 1 equal to a pair of a |" in line for line in curation.audit.lines())


def test_an_account_that_does_not_add_up_is_noticed(curate):
    curation = curate([("a", "What?", OTHER, WORSE, None)])
    curation.audit.record_step("lost", {"a": 0}, [])
    with pytest.raises(AssertionError, match="lost: a had 1 pairs"):
        curation.audit.check()


def test_near_duplicates_across_sources(curate):
    image = photo(0)
    curation = curate(
        [
            ("a", LONG, OTHER, WORSE, image),
            ("b", LONG, OTHER.replace("green", "deep"), WORSE, image.resize((128, 96), Image.Resampling.LANCZOS)),
            ("b", LONG, OTHER.replace("green", "deep"), WORSE, photo(1)),
            ("c", LONG, WORSE, OTHER, photo(1)),
        ]
    )
    curation.drop_near_duplicates(0.65, 6)
    reverse = ("near-duplicates", "nearly the same responses are preferred the other way round")
    assert why(curation) == {1: ("near-duplicates", "nearly equal to a pair of a"), 2: reverse, 3: reverse}


@pytest.mark.parametrize(
    ("copy", "is_same"),
    [
        (lambda image: as_jpeg(image), True),
        (lambda image: image.resize((256, 192), Image.Resampling.BICUBIC), True),
        (lambda image: image.resize((100, 75)), False),  # what it shows can no longer be read
        (lambda image: drawn(image, text="8"), False),
        (lambda image: drawn(image, bar=2), False),
        (lambda image: drawn(image, colour="green"), False),
        (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), False),
    ],
)
def test_what_may_be_asked_makes_another_picture(copy, is_same):
    picture = photo(0).resize((320, 240))
    assert same_picture(drawn(picture), copy(drawn(picture)).convert("RGB")) is is_same


def drawn(image, text="3", bar=0, colour="red"):
    """A picture with a digit of 10 pixels, a bar, and a small box."""
    draw = ImageDraw.Draw(image := image.copy())
    draw.rectangle([10, 10, 60, 60], fill="white")
    draw.text((20, 20), text, fill="black", font_size=12)
    draw.rectangle([100, 100 - bar, 110, 200], fill="black")
    draw.rectangle([200, 200, 212, 212], fill=colour)
    return image


def test_pairs_that_differ_in_colour_or_in_a_small_part_of_their_picture_stay(curate):
    names = ["red", "lime", "blue", "yellow", "cyan", "magenta", "white", "black", "orange", "purple"]
    rows = []
    for name in names:
        others = [other for other in names if other != name]
        rows += [("a", "Which colour is the box?", f"It is {name}.", f"It is {other}.", box(name)) for other in others]
    for digit in "0123456789":  # the same words, and other pictures
        rows += [("b", "Is the digit a prime?", "Yes, it is a prime.", "No, it is none.", drawn(photo(1), digit))]
    rows += [("b", "Is the digit a prime?", "No, it is none.", "Yes, it is a prime.", drawn(photo(1), "3", bar=3))]
    curation = curate(rows)
    curation.drop_contradictions()
    curation.drop_duplicates()
    curation.drop_near_duplicates(0.8, 6)
    assert curation.dropped == []


def box(colour):
    ImageDraw.Draw(image := Image.new("RGB", (112, 112), "grey")).rectangle([30, 30, 80, 80], fill=colour)
    return image


def benchmark(tmp_path, rows, name="bench"):
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return BenchmarkContent.from_yaml({"name": name, "path": str(tmp_path / "bench.jsonl")})


def test_decontamination(curate, tmp_path):
    image = photo(0)
    image.save(tmp_path / "tested.png")
    rows = [
        {"id": "RLAIF-V-5", "query": "Describe.", "response": ["A.", "B."], "image": "tested.png"},
        {"id": "x", "query": "Asked?", "response": ["Yes, it is.", "No."], "image": "none.png"},
        {"id": "y", "prompt": "Only words?", "chosen": ["C.", "D."], "rejected": "E."},
    ]
    tested = benchmark(tmp_path, rows)
    assert tested.images_not_read == 1
    source = PreferenceSource("a", "rlaif_v", "owner/name", benchmark_id_prefix="RLAIF-V-")
    curation = curate(
        [
            ("a", "Something.", OTHER, WORSE, image),
            ("a", "Something.", OTHER, WORSE, image.resize((240, 180), Image.Resampling.LANCZOS)),
            ("a", "ASKED?  ", "yes, it is.", WORSE, photo(1)),
            ("a", "Only  words?", OTHER, WORSE, None),
            ("a", "Describe.", OTHER, WORSE, photo(2)),  # only the prompt in common
            ("a", "Something.", OTHER, WORSE, photo(3)),  # row 5 of the set
            ("a", "Only words?", OTHER, WORSE, photo(4)),  # a prompt of text, but about an image
        ]
    )
    curation.drop_contaminated(tested, [source], 6)
    step = "decontamination: bench"
    assert why(curation) == {
        0: (step, "bench holds this image"),
        1: (step, "bench holds a similar image"),
        2: (step, "bench holds this prompt and response"),
        3: (step, "bench holds this prompt"),
        5: (step, "bench holds this row of the set by its id"),
    }
    assert curation.audit.steps[0]["benchmark_images_not_read"] == 1


def test_a_crop_of_a_benchmarks_image_is_near(tmp_path, curate):
    image = photo(0)
    image.save(tmp_path / "tested.png")
    tested = benchmark(tmp_path, [{"query": "Q?", "response": ["A"], "image": "tested.png"}])
    crop = image.crop((16, 12, 144, 108))
    curation = curate([("a", "Something.", OTHER, WORSE, crop), ("a", "Something.", OTHER, WORSE, photo(1))])
    curation.drop_contaminated(tested, [PreferenceSource("a", "rlaif_v", "owner/name")], 6)
    assert list(why(curation)) == [0]


def test_a_frame_of_a_benchmarks_video_is_its_image(tmp_path, curate):
    (tmp_path / "clip").mkdir()
    for i in range(2):
        photo(i).save(tmp_path / f"clip/{i}.png")
    tested = benchmark(tmp_path, [{"prompt": "Q?", "chosen": "A", "rejected": "B", "video": "clip"}])
    rows = [("a", "Something.", OTHER, WORSE, photo(1)), ("a", "Something.", OTHER, WORSE, photo(2))]
    curation = curate([*rows, ("a", "Q?", OTHER, WORSE, None)])  # which is not asked about the video
    curation.drop_contaminated(tested, [PreferenceSource("a", "mm_rlhf", "owner/name")], 6)
    assert why(curation) == {0: ("decontamination: bench", "bench holds this image")}


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_sets_that_test_a_policy_are_read_in_their_columns(tmp_path, curate, suffix):
    """MathVista's file holds each row under its id, its table the image; MMMU has a column for each image."""
    images = [photo(i) for i in range(4)]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    in_table = [{"bytes": (tmp_path / f"{i}.png").read_bytes(), "path": None} for i in range(4)]
    mathvista = {"pid": "1", "question": "How many?", "query": "Hint: count. How many?", "image": "0.png"}
    mmmu = {"id": "dev_1", "question": "<image 1> or <image 2>?", "image_1": "1.png", "image_2": "2.png"}
    if suffix == ".json":
        rows = {"1": mathvista, "2": mmmu, "3": {"pid": "3", "question": "Only words?"}}
        (tmp_path / "tested.json").write_text(json.dumps(rows))
    else:
        mathvista |= {"image": "images/0.jpg", "decoded_image": in_table[0]}  # that file is not on disk
        rows = [mathvista, mmmu | {"image_1": in_table[1], "image_2": in_table[2]}, {"question": "Only words?"}]
        columns = dict.fromkeys(key for row in rows for key in row)
        Dataset.from_list([columns | row for row in rows]).to_parquet(tmp_path / "tested.parquet")
    tested = BenchmarkContent("tested", str(tmp_path / f"tested{suffix}"))
    assert tested.images_not_read == 0 and {"1", "dev_1"} <= tested.ids
    asked = [("Else?", image) for image in images] + [("only WORDS?", None), ("How many?", images[3])]
    curation = curate([("a", question, OTHER, WORSE, image) for question, image in asked])
    curation.drop_contaminated(tested, [PreferenceSource("a", "rlaif_v", "owner/name")], 6)
    assert {i: reason for i, (_, reason) in why(curation).items()} == {
        **dict.fromkeys(range(3), "tested holds this image"),
        4: "tested holds this prompt",
    }


def as_jpeg(image):
    image.save(buffer := io.BytesIO(), "JPEG", quality=60)
    return Image.open(buffer)


@pytest.mark.parametrize("max_hamming_distance", [0, 6])
def test_a_pair_goes_exactly_if_a_model_trained_on_it_has_seen_a_row(curate, tmp_path, max_hamming_distance):
    plain = {name: Image.new("RGB", (32, 32), name) for name in ("red", "blue")}
    for name, image in {"0": photo(0), "1": photo(1), "red": plain["red"]}.items():
        image.save(tmp_path / f"{name}.png")
    asked = {"Describe.": "0.png", "How many?": "1.png", "Which?": "gone.png", "Hue?": "red.png", "Why?": None}
    lines = [
        {"id": "mmmu_1", "query": query, "response": [f"One: {query}", "Two."], "human_ranking": [0, 1], "image": image}
        for query, image in asked.items()
    ]
    tested = benchmark(tmp_path, lines)
    rows = vl_rewardbench.load(str(tmp_path / "bench.jsonl"))
    goes = {
        "image": [("A?", OTHER, photo(0)), ("B?", OTHER, plain["red"])],
        "similar image": [
            ("C?", OTHER, as_jpeg(photo(0))),
            ("D?", OTHER, photo(1).resize((240, 180), Image.Resampling.LANCZOS)),
            ("E?", OTHER, photo(0).crop((8, 6, 152, 114))),
            ("F?", OTHER, photo(1).crop((16, 12, 144, 108))),
        ],
        "prompt and response": [
            ("  how MANY?", "one:  how\nmany?", photo(5)),
            ("Which?", "two.", None),
            ("Why?", "Two.", photo(6)),
        ],
        "prompt": [("why? ", OTHER, None)],
        None: [
            ("Describe.", OTHER, None),  # a row about an image asks it
            ("Which?", OTHER, None),  # even one that is not on disk
            ("Why?", OTHER, photo(7)),  # a row of text asks it, but not about this image
            ("Describe.", OTHER, photo(8)),
            ("G?", "Two.", photo(9)),
            ("H?", "Two.", plain["blue"]),  # all images of one colour have the same perceptual hash
            ("I?", OTHER, None),
        ],
    }
    expected = [reason for reason, pairs in goes.items() for _ in pairs]
    curation = curate([("a", q, chosen, WORSE, image) for pairs in goes.values() for q, chosen, image in pairs])
    seen = []
    for i in range(len(curation.pairs)):
        overlap = TrainingOverlap(curation.pairs.select([i]), tmp_path, max_hamming_distance)
        reasons = set(map(overlap.reason, rows)) - {None}
        assert len(reasons) <= 1 and overlap.images_not_read == 1
        seen.append(reasons.pop() if reasons else None)
    curation.drop_contaminated(tested, [PreferenceSource("a", "rlaif_v", "owner/name")], max_hamming_distance)
    articles = {"similar image": "a"}
    assert {i: reason for i, (_, reason) in why(curation).items()} == {
        i: f"bench holds {articles.get(reason, 'this')} {reason}" for i, reason in enumerate(seen) if reason
    }
    if max_hamming_distance == 6:
        assert seen == expected
    left = TrainingOverlap(curation.datasets(0.0, 0)["train"], tmp_path, max_hamming_distance)
    assert [left.reason(row) for row in rows] == [None] * 5


def test_a_benchmark_without_known_columns_stops_the_run(tmp_path):
    with pytest.raises(ValueError, match="has no column that is known"):
        benchmark(tmp_path, [{"a": 1}])
    with pytest.raises(ValueError, match="needs name and path"):
        BenchmarkContent.from_yaml({"name": "a", "path": "b", "pth": "c"})
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        BenchmarkContent.from_yaml({"name": "a", "path": str(tmp_path / "none.jsonl")})


def test_the_public_sample_of_vl_rewardbench(curate):
    """Its ids, its texts; a question that thousands of pairs ask stays."""
    if not (SAMPLES / "vl_rewardbench.sample.jsonl").exists():
        pytest.skip("no sample beside the project")
    rows = [json.loads(line) for line in open(SAMPLES / "vl_rewardbench.sample.jsonl")]
    tested = BenchmarkContent("vl", str(SAMPLES / "vl_rewardbench.sample.jsonl"))
    assert tested.images_not_read == len(rows) == 17 and len(tested.contents.answer_keys) == 33  # two rows share one
    assert {"RLAIF-V-68603", "RLHF-V-912", "mathverse_2279"} < tested.ids and len(tested.ids) == 16
    first, second = rows[13]["response"]
    curation = curate(
        [
            ("a", rows[13]["query"].upper(), f" {second}", "No.", photo(0)),
            ("a", rows[13]["query"], "No.", first, photo(1)),
            ("a", rows[1]["query"], OTHER, WORSE, photo(2)),
            ("rlhf_v", "Something.", OTHER, WORSE, photo(3)),
        ]
    )
    curation.columns["index"][2:] = [912, 912]  # rows of their sets
    sources = [PreferenceSource("a", "rlaif_v", "owner/name", benchmark_id_prefix="RLAIF-V-")]
    sources += [PreferenceSource("rlhf_v", "trl_format", "owner/name", benchmark_id_prefix="RLHF-V-")]
    curation.drop_contaminated(tested, sources, 6)
    assert [row["reason"] for row in curation.dropped] == ["vl holds this prompt and response"] * 2 + [
        "vl holds this row of the set by its id"
    ]
    assert curation.kept == [2]


def test_row_ids():
    assert benchmark_row_ids(["RLAIF-V-", "RLHF-V", None], [14, 3, 1]) == ["RLAIF-V-14", "RLHF-V-3", None]


def test_surrogate_scores_from_a_file(curate, tmp_path):
    curation = curate([("a", f"{i}?", OTHER, WORSE, None) for i in range(4)])
    with pytest.raises(ValueError, match="None of 4 pairs has surrogate scores"):
        curation.drop_low_confidence(None, 0.0, 1.0)
    scores = [[2, 1], [1, 0.5], [-1, -9]]  # none for the last
    ids = curation.column("id")[:3]
    lines = [{"id": id, "scores": pair} for id, pair in zip(ids, scores, strict=True)]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    to_repair = curation.drop_low_confidence(str(tmp_path / "scores.jsonl"), 0.0, 1.0)
    assert [row["index"] for row in to_repair] == [1, 2] and curation.kept == [0]
    assert why(curation)[3] == ("surrogate", "the surrogate has not scored it")
    assert (to_repair[0]["score_chosen"], to_repair[0]["score_rejected"]) == (1, 0.5)
    assert to_repair[0]["chosen"] == [{"role": "assistant", "content": OTHER}]
    assert "min_score_margin" in to_repair[0]["reason"] and "min_chosen_score" in to_repair[1]["reason"]
    train = curation.datasets(0.0, 0)["train"]
    assert (train[0]["score_chosen"], train[0]["score_rejected"]) == (2.0, 1.0)


def test_tokens_are_those_of_training_and_control_tokens_are_dropped(curate, processor):
    rows = [
        ("a", "What is the sum of the two digits?", "I see 4 and 5. Answer: 9", "8", photo(0)),
        ("a", "<image> or <|im_end|>?", "9", "8", photo(0)),
        ("a", "What?", "9", "I see 4 and 5. Answer: 10", None),
    ]
    curation = curate(rows, processor)
    lengths = curation.column("n_tokens")
    for i in (0, 2):
        row = curation.pairs[i]
        conversations = [as_messages(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        batch = encode_conversations(processor, conversations, [row["images"]] * 2, ["one", "two"])
        width = batch["attention_mask"].sum(1).max().item()
        assert lengths[i] == width
    curation.drop_bad_texts()
    assert list(why(curation)) == [1] and "<|im_end|>" in why(curation)[1][1]
    curation.drop_outside_limits(lengths[2], None)
    assert why(curation)[0] == ("limits", "more tokens than max_tokens") and curation.kept == [2]


@pytest.mark.parametrize("scores", [[float("nan"), 1.0], [1.0], ["1", 0.0], None, [None, 1.0]])
def test_surrogate_scores_that_are_no_numbers_are_refused(curate, tmp_path, scores):
    curation = curate([("a", "?", OTHER, WORSE, None)])
    lines = [{"id": "good", "scores": [1, 0.5]}, {"id": "bad", "scores": scores}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "scores.jsonl").write_text(text, encoding="utf-8-sig")
    with pytest.raises(ValueError, match="line 2: the pair 'bad' has the scores"):
        curation.drop_low_confidence(str(tmp_path / "scores.jsonl"), 0.0, 1.0)


def test_an_id_with_two_pairs_of_scores_is_refused(tmp_path):
    lines = [{"id": "a", "scores": [1, 0.5]}, {"id": "a", "scores": [1, 0.5]}, {"id": "a", "scores": [0.5, 1]}]
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    assert read_scores(str(path)) == {"a": (1, 0.5)}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="scores.jsonl, line 3: the pair 'a' has other scores above"):
        read_scores(str(path))


def test_the_audit_is_there_where_nothing_is_left(curate, tmp_path):
    def run():
        curation = curate([("a", "?", OTHER, WORSE, None)])
        output = OutputFolder(str(tmp_path / "out"))
        curation.drop_outside_limits(None, 1)
        output.save(curation.datasets(0.0, 0), curation.audit, curation.dropped, [])

    with pytest.raises(ValueError, match=r"No pair is left: limits took 1. .*/out/audit.md says why"):
        run()
    assert {"audit.md", "audit.json", "dropped.jsonl"} < {path.name for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out/preferences").mkdir()  # a former result stays
    with pytest.raises(ValueError, match=r"/out.partial/audit.md says why"):
        run()
    assert (tmp_path / "out/preferences").exists() and (tmp_path / "out.partial/audit.json").exists()
