"""Every public schema, written with its columns and types, read back through `datasets`, and whole rows compared."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as PILImage

from vl_reward import DataCollatorForVisionReward
from vl_reward.curation import CurationAudit, PreferenceSource
from vl_reward.curation import source as source_module
from vl_reward.curation.pair import Unusable, build_pair
from vl_reward.curation.sources import llava_critic, mmpr, povid, skywork_preference, trl_format, vlfeedback
from vl_reward.data.images import load_image
from vl_reward.tiny.public_sets import FEATURES, build_public_sets


ROOT = Path(__file__).parent.parent
SAMPLES = ROOT.parent / "shared/fixtures"  # real public records, not part of the project
IMAGE, TEXT = {"type": "image", "text": None}, "What is it?"
COLUMNS = ("index", "origin", "prompt", "chosen", "rejected", "rating_margin", "chosen_first")


def picture(colour="red", size=(56, 56)):
    return PILImage.new("RGB", size, colour)


def said(text):
    return [{"role": "assistant", "content": text}]


def asked(*parts):
    parts = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return [{"role": "user", "content": parts}]


def load(tmp_path, form, path, **settings):
    """The pairs of a source, and what the audit says of it."""
    audit, work = CurationAudit({}), tmp_path / "work"
    work.mkdir(exist_ok=True)
    entry = {"name": form, "format": form, "path": str(path), **settings}
    pairs = PreferenceSource.from_yaml(entry).load(work, audit)
    return pairs, audit.sources[form]


def rows_of(pairs):
    return [tuple(row[column] for column in COLUMNS) for row in pairs]


def sample(name):
    """A file of public records. Without them a test is skipped."""
    if not (SAMPLES / name).exists():
        pytest.skip(f"no {name} beside the project")
    return SAMPLES / name


def write(tmp_path, name, rows):
    path = tmp_path / f"{name}.parquet"
    Dataset.from_list(rows, FEATURES[name]).to_parquet(str(path))
    return path


def test_rlaif_v(tmp_path):
    row = dict.fromkeys(("ds_name", "origin_dataset", "origin_split", "image_path"), "x")
    row |= {"question": TEXT, "chosen": "A cat.", "rejected": "A dog.", "idx": "a7", "image": picture()}
    pairs, counts = load(tmp_path, "rlaif_v", write(tmp_path, "rlaif_v", [row]))
    assert rows_of(pairs) == [(0, "a7", asked(IMAGE, TEXT), said("A cat."), said("A dog."), None, None)]
    assert load_image(pairs[0]["images"][0]).getpixel((0, 0)) == (255, 0, 0)
    assert (counts["rows"], counts["pairs"], counts["skipped"]) == (1, 1, {})
    assert counts["license"] == "CC BY-NC 4.0"


@pytest.mark.parametrize(
    ("one", "two", "better", "first"),
    [
        ("The first response", "The second response", "first", True),
        ("The first response", "The second response", "second", False),
        ("Response 1", "Response 2", "1", True),
        ("Response A", "Response B", "B", False),
    ],
)
def test_llava_critic_pairwise(tmp_path, one, two, better, first):
    human = f"<image>\nJudge.\nQuestion: [{TEXT}]\n{one}: [A [small]\ncat.]\n{two}: [A dog] or so.]"
    turns = [{"from": "human", "value": human}]
    turns += [{"from": "gpt", "value": f"One sees more. The better response: [{better}]"}]
    row = {"id": "vlfeedback_1", "source": "vlfeedback", "conversations": turns, "image": picture()}
    pairs, _ = load(tmp_path, "llava_critic", write(tmp_path, "llava_critic", [row]))
    cat, dog = said("A [small]\ncat."), said("A dog] or so.")
    chosen, rejected = (cat, dog) if first else (dog, cat)
    assert rows_of(pairs) == [(0, "vlfeedback_1", asked(IMAGE, TEXT), chosen, rejected, None, first)]


def critic_row(human, gpt):
    return {
        "id": "1",
        "image": None,
        "conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}],
    }


BENCH = "[Question]\nWhy?\n\n[Assistant 1]\nA.\n\n[End of Assistant 1]\n\n[Assistant 2]\nB.\n\n[End of Assistant 2]"
ARENA = (
    "<|User Prompt|>\nWhy?\n\n<|The Start of Assistant A's Answer|>\nA.\n<|The End of Assistant A's Answer|>\n\n"
    "<|The Start of Assistant B's Answer|>\nB.\n<|The End of Assistant B's Answer|>"
)
WORDS = "Question: [Why?]\nResponse 1: [A.]\nResponse 2: [B.]"


@pytest.mark.parametrize(
    ("human", "gpt", "chosen", "gap"),
    [
        (BENCH, "8 6\nThe first is better.", "A.", 0.2),
        (BENCH, "3 9.5\nThe second.", "B.", 0.65),
        (ARENA, "First [[A=B]], but on a second look [[B>>A]]", "B.", None),
        (ARENA, "My verdict: [[A>B]]", "A.", None),
    ],
)
def test_llava_critic_pointwise_forms_that_compare(human, gpt, chosen, gap):
    (pair,) = llava_critic.pairs(critic_row(human, gpt))
    assert (pair["chosen"], pair["prompt"]) == (said(chosen), asked("Why?"))
    assert pair["rating_margin"] == (gap if gap is None else pytest.approx(gap))


@pytest.mark.parametrize(
    ("human", "gpt", "reason"),
    [
        (WORDS, "Both are equally good.", "tie"),
        (WORDS, "I cannot say.", "no verdict found"),
        (BENCH, "7 7\nBoth.", "tie"),
        (BENCH, "Both are good.", "no verdict found"),
        (ARENA, "[[A=B]]", "tie"),
        ("Text Caption: a cat. Score it.", "Final Score: 88", "one scored response, not a comparison"),
        ("Tell me a joke.", "No.", "no known form of comparison"),
    ],
)
def test_llava_critic_rows_without_a_comparison_say_why(human, gpt, reason):
    with pytest.raises(Unusable, match=f"^{reason}$"):
        list(llava_critic.pairs(critic_row(human, gpt)))


def test_trl_format_with_the_none_keys_of_arrow(tmp_path):
    """Arrow gives the image part a text of None: the question must not vanish, nor a second image appear."""
    row = {"images": [picture(), picture("blue")], "prompt": asked(IMAGE, IMAGE, TEXT)}
    row |= {
        side: [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
        for side, text in (("chosen", "A cat."), ("rejected", "A dog."))
    }
    path = write(tmp_path, "trl_format", [row])
    assert Dataset.from_parquet(str(path))[0]["prompt"][0]["content"][0] == IMAGE  # that is the trap
    pairs, _ = load(tmp_path, "trl_format", path)
    assert rows_of(pairs) == [(0, None, asked(IMAGE, IMAGE, TEXT), said("A cat."), said("A dog."), None, None)]
    assert [load_image(image).getpixel((0, 0)) for image in pairs[0]["images"]] == [(255, 0, 0), (0, 0, 255)]


def test_a_question_survives_the_chat_template(tmp_path, processor):
    pairs, _ = load(tmp_path, "rlaif_v", write_rlaif(tmp_path))
    batch = DataCollatorForVisionReward(processor)([pairs[0]])
    text = processor.tokenizer.decode(batch["input_ids"][0])
    assert "What is the sum of the two digits?" in text
    assert text.count(processor.image_token) == 4 and len(batch["image_numbers"]) == 2  # one image in either row


def write_rlaif(tmp_path):
    row = dict.fromkeys(("ds_name", "origin_dataset", "origin_split", "image_path", "idx"), "x")
    row |= {"question": "What is the sum of the two digits?", "chosen": "9", "rejected": "8", "image": picture()}
    return write(tmp_path, "rlaif_v", [row])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": TEXT, "chosen": "A", "rejected": "B"}, asked(TEXT)),
        ({"prompt": TEXT, "chosen": "A", "rejected": "B", "images": ["a.png", "b.png"]}, asked(IMAGE, IMAGE, TEXT)),
        ({"prompt": TEXT, "chosen": "A", "rejected": "B", "image": "a.png"}, asked(IMAGE, TEXT)),
        (
            {"chosen": [{"role": "user", "content": TEXT}, *said("A")]}
            | {"rejected": [{"role": "user", "content": TEXT}, *said("B")]},
            asked(TEXT),
        ),
    ],
)
def test_trl_format_of_files(row, expected):
    (pair,) = trl_format.pairs(row)
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (expected, said("A"), said("B"))


def test_trl_format_keeps_scores_and_counts_placeholders():
    row = {"prompt": TEXT, "chosen": "A", "rejected": "B", "score_chosen": 2.5, "score_rejected": -1.0}
    (pair,) = trl_format.pairs(row)
    assert (pair["score_chosen"], pair["score_rejected"]) == (2.5, -1.0)
    with pytest.raises(Unusable, match="number of image placeholders"):
        list(trl_format.pairs({"prompt": asked(TEXT), "images": ["a.png"], "chosen": "A", "rejected": "B"}))


def test_skywork_preference_parts_the_common_turns(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, *said("Hello"), {"role": "user", "content": TEXT}]
    rows = [{"chosen": [*turns, *said("A cat.")], "rejected": [*turns, *said("A dog.")], "source": "magpie"}]
    rows += [{"chosen": [*turns, *said("A.")], "rejected": [*turns, *said("A.")], "source": "equal"}]
    rows += [{"chosen": [*turns, *said("A.")], "rejected": said("B."), "source": "other prompt"}]
    pairs, counts = load(tmp_path, "skywork_preference", write(tmp_path, "skywork_preference", rows))
    prompt = asked("Hi") + [{"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}] + asked(TEXT)
    assert rows_of(pairs) == [(0, "magpie", prompt, said("A cat."), said("A dog."), None, None)]
    assert counts["skipped"] == {
        "the two conversations are equal": 1,
        "the two conversations share no prompt": 1,
    }
    parting = {"chosen": [*turns, *said("A."), *turns, *said("C.")], "rejected": [*turns, *said("B.")]}
    with pytest.raises(Unusable, match="part before their last turn"):
        list(skywork_preference.pairs(parting))


def test_mmpr_with_one_image_several_and_none(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        picture(size=(28, 28)).save(tmp_path / "images" / name)
    lines = [
        {"image": "a.png", "question": TEXT, "chosen": "A", "rejected": "B", "answer_gt": "A"},
        {"image": ["a.png", "b.png"], "question": "<image>\nor\n<image>?", "chosen": "A", "rejected": "B"},
        {"question": TEXT, "chosen": "A", "rejected": "B"},
        {"video": "a.mp4", "question": TEXT, "chosen": "A", "rejected": "B"},
        {"image": ["a.png", "b.png"], "question": "<image> alone", "chosen": "A", "rejected": "B"},
        {"image": "../a.png", "question": TEXT, "chosen": "A", "rejected": "B"},
        {"question": TEXT, "chosen": "A"},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\nnot JSON\n"
    (tmp_path / "one.jsonl").write_text(text)
    (tmp_path / "two.jsonl").write_text(json.dumps(lines[2]) + "\n")
    entry = {"root": "images", "annotation": "one.jsonl", "data_augment": False, "repeat_time": 1, "length": 8}
    second = {**entry, "annotation": "two.jsonl"}
    (tmp_path / "meta.json").write_text(f'{{"one": {json.dumps(entry)}, "two": {json.dumps(second)},\n}}')
    pairs, counts = load(tmp_path, "mmpr", tmp_path / "meta.json")
    answers = (said("A"), said("B"), None, None)
    assert rows_of(pairs) == [
        (0, None, asked(IMAGE, TEXT), *answers),
        (1, None, asked(IMAGE, "or", IMAGE, "?"), *answers),
        (2, None, asked(TEXT), *answers),
        (5, None, asked(IMAGE, TEXT), *answers),
        (8, None, asked(TEXT), *answers),
    ]
    paths = [[image["path"] for image in row["images"]] for row in pairs]
    a, b = (str((tmp_path / "images" / name).resolve()) for name in ("a.png", "b.png"))
    assert paths[:3] == [[a], [a, b], []]
    assert paths[3] == ["refused: ../a.png: leads out of the image root. Move the image under `image_root`."]
    assert counts["rows"] == 9 and sum(counts["skipped"].values()) == 4
    assert counts["skipped"]["video"] == counts["skipped"]["the line is not JSON"] == 1


def test_mmpr_meta_with_a_trailing_comma_and_commas_in_strings():
    assert mmpr.parse_meta('{"a, }": {"root": "x,]", "n": [1, 2,],},\n}') == {"a, }": {"root": "x,]", "n": [1, 2]}}


def test_the_public_sample_of_mmprs_meta():
    path = sample("mmpr_meta_invalid_json.sample.json")
    with pytest.raises(json.JSONDecodeError):
        json.loads(path.read_text())
    entry = {"root": "MMPR-v1.2/images/M3CoT", "data_augment": False, "repeat_time": 1}
    names = [f"m3cot_train_extracted_pairs_vqa_{kind}_rules" for kind in ("correctness", "format")]
    assert mmpr.parse_meta(path.read_text()) == {
        name: entry | {"annotation": f"MMPR-v1.2/annotations/{name}.jsonl", "length": length}
        for name, length in zip(names, (529, 201), strict=True)
    }
    with pytest.raises(FileNotFoundError, match="Unpack annotations.zip there"):
        mmpr.annotation_files(path)


def test_mmpr_names_the_file_that_is_missing(tmp_path):
    (tmp_path / "meta.json").write_text('{"one": {"root": "images", "annotation": "none.jsonl"}}')
    with pytest.raises(FileNotFoundError, match="names none.jsonl for one"):
        mmpr.annotation_files(tmp_path / "meta.json")


def rated(rating):
    return {aspect: {"Rating": rating, "Rationale": "So."} for aspect in vlfeedback.ASPECTS}


@pytest.mark.parametrize("layout", ["list of structs", "struct of lists"])
def test_vlfeedback_in_both_layouts(layout):
    answers = [("A", "5"), ("B", "2"), ("C", "2"), ("D", "N/A")]
    completions = [{"model": "m", "response": text, "annotations": rated(rating)} for text, rating in answers]
    if layout == "struct of lists":
        completions = {
            "model": ["m"] * 4,
            "response": [text for text, _ in answers],
            "annotations": {
                aspect: {"Rating": [rating for _, rating in answers], "Rationale": ["So."] * 4}
                for aspect in vlfeedback.ASPECTS
            },
        }
    row = {"id": "v1", "prompt": TEXT, "completions": completions, "img_path": "a.png"}
    outcomes = list(vlfeedback.pairs(row))
    pairs = [outcome for outcome in outcomes if "skipped" not in outcome]
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [(said("A"), said("B")), (said("A"), said("C"))]
    assert [pair["rating_margin"] for pair in pairs] == [0.75, 0.75] and all(pair["chosen_first"] for pair in pairs)
    assert pairs[0]["images"] == [{"bytes": None, "path": "a.png"}]
    reasons = [outcome["skipped"] for outcome in outcomes if "skipped" in outcome]
    assert sorted(reasons) == ["a rating is not a number"] * 3 + ["tie"]


def test_vlfeedback_through_arrow(tmp_path):
    completions = [
        {"model": "m", "response": text, "annotations": rated(rating)} for text, rating in (("A", "1"), ("B", "4"))
    ]
    row = {"id": "v1", "prompt": TEXT, "models": ["m"], "completions": completions, "image": picture()}
    pairs, _ = load(tmp_path, "vlfeedback", write(tmp_path, "vlfeedback", [row]))
    assert rows_of(pairs) == [(0, "v1", asked(IMAGE, TEXT), said("B"), said("A"), 0.75, False)]


def test_mm_rlhf_with_an_image_and_with_frames(tmp_path):
    (tmp_path / "video/clip").mkdir(parents=True)
    for i in range(20):
        picture().save(tmp_path / f"video/clip/{i:02}.png")
    picture().save(tmp_path / "a.png")
    lines = [{"id": 7, "prompt": f"<image>\n{TEXT}", "chosen": "A", "rejected": "B", "image": "a.png"}]
    lines += [{"id": "v", "prompt": TEXT, "chosen": "A", "rejected": "B", "video": "video/clip"}]
    lines += [{"id": "w", "prompt": TEXT, "chosen": "A", "rejected": "B", "video": "video/none.mp4"}]
    (tmp_path / "dpo_pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pairs, counts = load(tmp_path, "mm_rlhf", tmp_path / "dpo_pairs.jsonl")
    assert rows_of(pairs) == [
        (0, "7", asked(IMAGE, TEXT), said("A"), said("B"), None, None),
        (1, "v", asked(*[IMAGE] * 16, TEXT), said("A"), said("B"), None, None),
    ]
    names = [image["path"][-6:-4] for image in pairs[1]["images"]]
    assert names == [f"{i * 20 // 16:02}" for i in range(16)]
    assert counts["skipped"] == {"the video is not a folder with frames: extract them first": 1}


def test_public_samples_in_mm_rlhfs_schema(tmp_path):
    path = sample("mm_rlhf_rewardbench.sample.jsonl")
    pairs, counts = load(tmp_path, "mm_rlhf", path)
    assert (counts["rows"], counts["pairs"]) == (30, 26)
    assert counts["skipped"] == {"the video is not a folder with frames: extract them first": 4}
    question = "In 2005, how many titles were recorded?\nAnswer the question using a single word or phrase."
    origin = "cauldron/robut_wtq/images/robut_wtq_00035038.png_6431961"
    assert rows_of(pairs)[0] == (0, origin, asked(IMAGE, question), said("6"), said("Ten"), None, None)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["chosen"] for row in pairs] == [said(line["chosen"]) for line in lines if "image" in line]
    assert [image["path"] for image in pairs[0]["images"]] == [str((SAMPLES / lines[0]["image"]).resolve())]


def test_povid_and_llava_rlhf():
    question = {"from": "human", "value": f"<image>\n{TEXT}"}
    row = {"id": "p", "image": "a.png", "conversations": [question], "preference": 2}
    (pair,) = povid.pairs(row | {"output_1": {"from": "llava", "value": "A"}, "output_2": "B"})
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (asked(IMAGE, TEXT), said("B"), said("A"))
    assert pair["chosen_first"] is False
    with pytest.raises(Unusable, match="neither 1 nor 2"):
        list(povid.pairs(row | {"output_1": "A", "output_2": "B", "preference": 0}))
    row = {"id": "p", "image": "a.png", "conversations": [question, {"from": "gpt", "value": "A"}]}
    row["rejected_conversations"] = [question, {"from": "gpt", "value": "B"}]
    (pair,) = povid.pairs(row)
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (asked(IMAGE, TEXT), said("A"), said("B"))


def test_an_image_stands_where_the_text_says():
    parts = asked("Is ", IMAGE, " like", IMAGE, "?")[0]["content"]
    assert build_pair("Is <image> like\n<image>?", "A", "B", ["a", "b"])["prompt"][0]["content"] == parts
    with pytest.raises(Unusable, match=r"Number of images provided \(1\) does not match"):
        build_pair("<image><image>", "A", "B", ["a"])
    with pytest.raises(Unusable, match="chosen response is empty"):
        build_pair(TEXT, "  ", "B")


def test_all_tiny_sets_load_and_nothing_is_lost(tmp_path):
    build_public_sets(tmp_path / "sets", n=14)
    for form, path in [(name, f"{name}.parquet") for name in FEATURES] + [
        ("mmpr", "mmpr/meta.json"),
        ("mm_rlhf", "mm_rlhf/dpo_pairs.jsonl"),
        ("povid", "povid/preference.json"),
    ]:
        pairs, counts = load(tmp_path, form, tmp_path / "sets" / path)
        if form != "vlfeedback":  # whose rows hold six pairs each
            assert counts["rows"] == len(pairs) + sum(counts["skipped"].values())
        else:
            assert 6 * counts["rows"] == len(pairs) + sum(counts["skipped"].values())


def test_json_rows_need_no_common_schema(tmp_path):
    """Arrow could not read these lines as one table: `id` is a number and a string, `image` a string and a list."""
    lines = [{"id": 1, "prompt": TEXT, "chosen": "A", "rejected": "B", "images": []}]
    lines += [{"id": "x", "prompt": asked(TEXT), "chosen": said("A"), "rejected": said("B")}]
    (tmp_path / "own.json").write_text(json.dumps(lines))
    pairs, _ = load(tmp_path, "trl_format", tmp_path / "own.json")
    assert rows_of(pairs) == [(i, id, asked(TEXT), said("A"), said("B"), None, None) for i, id in ((0, "1"), (1, "x"))]


def test_a_file_that_changed_is_read_anew(tmp_path):
    line = {"prompt": TEXT, "chosen": "A", "rejected": "B"}
    (tmp_path / "own.jsonl").write_text(json.dumps(line) + "\n")
    assert load(tmp_path, "trl_format", tmp_path / "own.jsonl")[0][0]["chosen"] == said("A")
    (tmp_path / "own.jsonl").write_text(json.dumps(line | {"chosen": "C"}) + "\n")
    (tmp_path / "again").mkdir()
    assert load(tmp_path / "again", "trl_format", tmp_path / "own.jsonl")[0][0]["chosen"] == said("C")


def test_streaming_reads_the_first_rows_only(tmp_path, monkeypatch):
    """The hub is stood in for by a local file, read by the same call with `streaming`."""
    features = Features(
        {"prompt": Value("string"), "chosen": Value("string"), "rejected": Value("string")} | {"images": List(Image())}
    )
    rows = [{"prompt": f"{i}?", "chosen": "A", "rejected": "B", "images": [picture()]} for i in range(5)]
    Dataset.from_list(rows, features).to_parquet(str(tmp_path / "hub.parquet"))

    def load_from_file(path, config, split, streaming):
        assert (path, config, split, streaming) == ("owner/name", None, "train", True)
        return load_dataset("parquet", data_files=str(tmp_path / "hub.parquet"), split=split, streaming=streaming)

    monkeypatch.setattr(source_module, "load_dataset", load_from_file)
    pairs, counts = load(tmp_path, "trl_format", "owner/name", streaming=True, max_rows=2)
    assert [row["prompt"] for row in pairs] == [asked(IMAGE, "0?"), asked(IMAGE, "1?")] and counts["rows"] == 2
    assert np.array(PILImage.open(io.BytesIO(pairs[0]["images"][0]["bytes"]))).shape == (56, 56, 3)


def test_rows_of_wrong_types_are_counted_and_stop_nothing(tmp_path):
    good = {"prompt": TEXT, "chosen": "A", "rejected": "B"}
    bad = [
        {"prompt": TEXT, "chosen": "\ud800", "rejected": "B"},  # half a character
        {"prompt": [{"role": 3, "content": TEXT}], "chosen": "A", "rejected": "B"},
        {**good, "score_chosen": "high", "score_rejected": 1.0},
        {"prompt": 5, "chosen": "A", "rejected": "B"},
        [1, 2],
    ]
    lines = [json.dumps(row) for row in [good, *bad, good | {"id": "\ud800"}, good]] + ["[" * 100_000, "", "{"]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    pairs, counts = load(tmp_path, "trl_format", tmp_path / "own.jsonl")
    assert pairs["index"][:] == [0, 7]
    assert counts["rows"] == 2 + sum(counts["skipped"].values()) == 11
    assert counts["skipped"]["a value is not of the type that the column needs (UnicodeEncodeError)"] == 1
    assert counts["skipped"]["a text holds half a character"] == 1
    assert counts["skipped"]["the row is not an object with named columns"] == 1


@pytest.mark.parametrize("path", ["tiny", "qwen2_5_vl_7b", "qwen3_vl_8b"])
def test_every_source_of_the_configs_is_valid(path, tmp_path, monkeypatch):
    config = yaml.safe_load((ROOT / f"recipes/configs/{path}/prepare_preferences.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    for entry in config["sources"]:
        if entry["path"].startswith("outputs"):
            Path(entry["path"]).parent.mkdir(parents=True, exist_ok=True)
            Path(entry["path"]).touch()
        assert PreferenceSource.from_yaml(entry).name == entry["name"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wieght": 1}, r"has the keys \['wieght'\]; there are name, format"),
        ({"format": "nobody"}, "has the format nobody; there are llava_critic, mm_rlhf"),
        ({"path": None}, r"lacks \['path'\]"),
        ({"streaming": True}, "`streaming` without `max_rows`"),
        ({"weight": 0}, "weight 0"),
        ({"weight": "2"}, "has weight '2', a str, and"),
        ({"max_rows": -1}, "has max_rows -1. It must be above 0"),
        ({"max_rows": 2.5}, "has max_rows 2.5, a float, and"),
        ({"allow_urls": "yes"}, "has allow_urls 'yes', a str, and"),
        ({"max_pairs": True}, "has max_pairs True, a bool, and"),
    ],
)
def test_a_wrong_entry_stops_the_run(change, message):
    with pytest.raises(ValueError, match=message):
        PreferenceSource.from_yaml({"name": "a", "format": "rlaif_v", "path": "owner/name", **change})


def test_a_missing_file_names_the_command_that_makes_it():
    with pytest.raises(FileNotFoundError, match="python -m vl_reward.tiny.public_sets"):
        PreferenceSource.from_yaml({"name": "a", "format": "rlaif_v", "path": "outputs/none/a.parquet"})


def test_the_wrong_format_is_named_with_the_reasons(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(ValueError, match=r"none of 1 rows holds a pair in the format rlaif_v.*KeyError"):
        load(tmp_path, "rlaif_v", tmp_path / "own.jsonl")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["lines.jsonl", "list.json"])
def test_a_byte_order_mark_is_no_text(tmp_path, name, encoding):
    rows = [{"prompt": f"{i}?", "chosen": "A", "rejected": "B"} for i in range(3)]
    text = json.dumps(rows) if name == "list.json" else "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(text, encoding=encoding)
    pairs, counts = load(tmp_path, "trl_format", tmp_path / name)
    assert len(pairs) == 3 and counts["skipped"] == {}


@pytest.mark.parametrize("name", ["lines.jsonl", "list.json"])
def test_a_text_of_another_encoding_is_named(tmp_path, name):
    rows = [{"prompt": text, "chosen": "A", "rejected": "B"} for text in ("What?", "Größe?")]
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = f"[{texts[0]},\n{texts[1]}]" if name == "list.json" else "\n".join(texts)
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=f"{name}, line 2 is not UTF-8: .* Save the file as UTF-8"):
        load(tmp_path, "trl_format", tmp_path / name)


def test_a_byte_order_mark_of_mmpr(tmp_path):
    row = {"question": TEXT, "chosen": "A", "rejected": "B"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8-sig")
    meta = {"one": {"root": ".", "annotation": "a.jsonl"}}
    (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-16")
    assert len(load(tmp_path, "mmpr", tmp_path / "meta.json")[0]) == 1


def test_the_question_of_a_whole_conversation_stands_there_once():
    question = [{"role": "user", "content": TEXT}]
    row = {"prompt": TEXT, "chosen": [*question, *said("A")], "rejected": [*question, *said("B")]}
    (pair,) = trl_format.pairs(row)
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (asked(TEXT), said("A"), said("B"))


CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "look"}}]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}]},
            "a message holds an image itself, and images are read from the row's `images`",
        ),
        (
            {"prompt": [*asked(TEXT), CALL, *asked(TEXT)]},
            "a message holds tool_calls, which this project does not read",
        ),
        (
            {"chosen": [{**said("A")[0], "thinking": "hm"}]},
            "a message holds thinking, which this project does not read",
        ),
        ({"prompt": [{"role": "tool", "content": "21"}]}, "a message has the role 'tool'"),
        ({"rejected": []}, "the rejected response is empty"),
        ({"rejected": asked("B")}, "the rejected response ends in a turn of the user"),
        ({"rejected": None}, "the rejected response is missing"),
        ({"prompt": "<image> What?"}, r"Number of images provided \(0\)"),
        ({"images": ["a.png", None]}, "one of the images is null"),
        ({"images": 7}, "`images` is 7, and an image or a list of images is needed"),
        ({"score_chosen": float("nan")}, "a score is not a finite number"),
    ],
)
def test_what_a_row_says_besides_text_and_images_is_refused_by_name(changes, reason):
    with pytest.raises(ValueError, match=reason):
        list(trl_format.pairs({"prompt": TEXT, "chosen": "A", "rejected": "B"} | changes))


def test_an_image_stands_in_the_later_turn_that_has_its_mark():
    prompt = [{"role": "user", "content": "Hi"}, *said("Hello"), {"role": "user", "content": f"<image>\n{TEXT}"}]
    (pair,) = trl_format.pairs({"prompt": prompt, "chosen": "A", "rejected": "B", "images": ["a.png"]})
    assert [message["content"] for message in pair["prompt"]] == [
        asked("Hi")[0]["content"],
        asked("Hello")[0]["content"],
        asked(IMAGE, TEXT)[0]["content"],
    ]


def test_data_urls_are_images_and_empty_paths_are_refused(tmp_path):
    picture().save(buffer := io.BytesIO(), "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    rows = [{"prompt": TEXT, "chosen": "A", "rejected": "B", "images": [image]} for image in (url, "", ".")]
    pairs, _ = load(tmp_path, "trl_format", write_json(tmp_path, rows))
    images = [row["images"][0] for row in pairs]
    assert images[0] == {"bytes": buffer.getvalue(), "path": None}
    assert all("is the image root itself" in image["path"] for image in images[1:])


def write_json(tmp_path, rows):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"
