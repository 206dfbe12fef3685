"""What `dataset_name` may be: saved sets, files as people have them, with or without splits."""

import base64
import json

import pytest
from datasets import Dataset, DatasetDict, Image, List, Value, concatenate_datasets
from PIL import Image as PILImage

from vl_reward import DataCollatorForVisionReward
from vl_reward.data.images import load_image
from vl_reward.data.messages import text_of
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.labelling.verifiers import exact
from vl_reward.tiny.preferences import PREFERENCE_FEATURES, as_png


@pytest.fixture
def own(tmp_path):
    """Rows as a person writes them, in a folder with pictures: strings, messages, parts, one image, none, two."""
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        PILImage.new("RGB", (56, 56), (80 * number, 0, 0)).save(tmp_path / f"pictures/{number}.png")
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    return tmp_path, [
        {"prompt": "What is it?", "images": ["pictures/0.png"], "chosen": "A box.", "rejected": "A cat."},
        {"prompt": [{"role": "user", "content": parts}], "image": str(tmp_path / "pictures/1.png")}
        | {"chosen": [{"role": "assistant", "content": "A box."}], "rejected": "A dog."},
        {
            "prompt": "What are they?",
            "images": ["pictures/1.png", "pictures/2.png"],
            "chosen": "Boxes.",
            "rejected": "?",
        },
        {"id": "mine", "prompt": "2 + 2?", "chosen": "4", "rejected": "5", "images": None},
    ]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_file_is_read_as_it_is_trained_on(own, processor):
    folder, rows = own
    (folder / "pairs.jsonl").write_text("\ufeff" + lines(rows), encoding="utf-8")
    (folder / "pairs.json").write_text(json.dumps(rows))
    read = [NamedDataset(str(folder / name)).split("train") for name in ("pairs.jsonl", "pairs.json")]
    assert read[0][:] == read[1][:] and read[0]["id"][:] == ["0", "1", "2", "mine"]
    assert [[image["path"] for image in images] for images in read[0]["images"]] == [
        [str(folder / "pictures/0.png")],
        [str(folder / "pictures/1.png")],
        [str(folder / "pictures/1.png"), str(folder / "pictures/2.png")],
        [],
    ]
    batch = DataCollatorForVisionReward(processor)([*read[0]])
    messages = [{"role": "user", "content": "What is it?"}], [{"role": "assistant", "content": "A box."}]
    by_hand = {"prompt": messages[0], "chosen": messages[1], "rejected": "A cat."}
    with PILImage.open(folder / "pictures/0.png") as image:
        alone = DataCollatorForVisionReward(processor)([by_hand | {"images": [image]}])
    n = alone["attention_mask"].sum(1)[0]
    assert batch["input_ids"][0, :n].equal(alone["input_ids"][0, :n]) and len(batch["image_numbers"]) == 8


def test_parquet_text_alone_and_a_folder_with_one_file(own, tmp_path):
    folder, rows = own
    texts = [{"prompt": "2 + 2?", "chosen": str(i), "rejected": "5"} for i in range(3)]
    (folder / "text").mkdir()
    (folder / "text/pairs.jsonl").write_text(lines(texts))
    text = NamedDataset(str(folder / "text")).split("train")
    assert text["images"][:] == [[]] * 3 and text.features["images"] == List(Image(decode=False))
    Dataset.from_list([rows[0], rows[2]]).to_parquet(str(folder / "pairs.parquet"))
    table = NamedDataset(str(folder / "pairs.parquet")).split("train")
    assert table["images"][1][1]["path"] == str(folder / "pictures/2.png")
    one = Dataset.from_dict({"prompt": ["q"], "chosen": ["a"], "rejected": ["b"], "image": ["pictures/0.png"]})
    one.to_parquet(str(folder / "one.parquet"))
    assert NamedDataset(str(folder / "one.parquet")).split("train")["images"][:] == [
        [{"bytes": None, "path": str(folder / "pictures/0.png")}]
    ]
    with pytest.raises(ValueError, match="holds 2 JSONL, JSON or parquet files. Name one."):
        NamedDataset(str(folder))


def test_saved_sets_with_and_without_splits(image_pairs, text_pairs, tmp_path):
    pairs = Dataset.from_list(as_png(image_pairs + text_pairs), PREFERENCE_FEATURES)
    pairs.save_to_disk(tmp_path / "plain")
    DatasetDict({"train": pairs, "test": pairs.select(range(4))}).save_to_disk(tmp_path / "split")
    DatasetDict({"train": pairs}).save_to_disk(tmp_path / "train_only")
    whole = NamedDataset(str(tmp_path / "plain")).split("anything")
    assert whole["id"][:] == pairs["id"][:] and whole["images"][0][0]["bytes"]
    train, test = NamedDataset(str(tmp_path / "split")).train_and_test("train", "test")
    assert (len(train), test["id"][:]) == (32, pairs["id"][:4])
    with pytest.raises(ValueError, match="has the splits train, test, and no validation. Name one of them."):
        NamedDataset(str(tmp_path / "split")).split("validation")
    for name in ("plain", "train_only"):
        train, test = NamedDataset(str(tmp_path / name)).train_and_test("train", "test")
        assert len(train) + len(test) == 32 and len(test) >= 1
        assert NamedDataset(str(tmp_path / name)).train_and_test("train", "test")[1]["id"][:] == test["id"][:]


def test_no_image_is_held_out_and_trained_on(tmp_path):
    rows = [{"prompt": "q", "chosen": "a", "rejected": f"b{i}", "images": [f"{i // 4}.png"]} for i in range(2000)]
    n_test = []
    for second in (lambda i: [], lambda i: [f"second_{i // 16}.png"]):  # rows are bound together by another image, too
        changed = [row | {"images": row["images"] + second(i)} for i, row in enumerate(rows)]
        (tmp_path / "pairs.jsonl").write_text(lines(changed))
        train, test = NamedDataset(str(tmp_path / "pairs.jsonl")).train_and_test("train", "test")
        shown = [{image["path"] for images in split["images"] for image in images} for split in (train, test)]
        assert not shown[0] & shown[1] and 1 <= len(test) <= 40 and len(train) + len(test) == 2000
        n_test.append(len(test))
    assert n_test[0] == 40 and train.features["prompt"].feature["role"] == Value("string")


def test_conversations_without_a_prompt_are_held_out_by_what_they_ask(tmp_path, caplog):
    def turns(number, answer):
        return [{"role": "user", "content": f"q{number // 2}"}, {"role": "assistant", "content": answer}]

    rows = [{"chosen": turns(i, "a"), "rejected": turns(i, f"b{i}")} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text(lines(rows))
    train, test = NamedDataset(str(tmp_path / "pairs.jsonl")).train_and_test("train", "test")
    asked = [{row[0]["content"][0]["text"] for row in split["chosen"]} for split in (train, test)]
    assert (len(train), len(test)) == (18, 2) and not asked[0] & asked[1]
    (tmp_path / "pairs.jsonl").write_text(lines(rows[:2]))
    train, test = NamedDataset(str(tmp_path / "pairs.jsonl")).train_and_test("train", "test")
    assert (train["id"][:], test["id"][:]) == (["0"], ["1"]) and "was seen in training in part" in caplog.text
    (tmp_path / "pairs.jsonl").write_text(lines(rows[:1]))
    with pytest.raises(ValueError, match="has no split test, and 1 rows to hold some out of"):
        NamedDataset(str(tmp_path / "pairs.jsonl")).train_and_test("train", "test")


def test_a_bad_row_is_named(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines([{"prompt": "q", "chosen": "a", "rejected": "b"}]) + '{"prompt": \n')
    with pytest.raises(ValueError, match="pairs.jsonl, line 2 is not JSON"):
        NamedDataset(str(path))
    path.write_text(lines([{"id": None, "prompt": "q", "chosen": "a", "rejected": "b"}]))
    assert NamedDataset(str(path)).split("train")["id"][:] == ["0"]
    for text, message in (("[1, 2]", "row 0 is not an object"), ("[{", "line 1 is not JSON"), ("5", "row 0 is not an")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"pairs.jsonl, {message}"):
            NamedDataset(str(path))
    with pytest.raises(FileNotFoundError, match="`dataset_name: .*none.jsonl` does not exist"):
        NamedDataset(str(tmp_path / "none.jsonl"))


OWN = {"prompt": "question", "chosen": "good", "rejected": "bad", "images": "picture"}


def test_columns_of_other_names_are_read_from_every_kind_of_file(own):
    folder, rows = own
    renamed = [{"number": i, "good": row["chosen"], "bad": row["rejected"]} for i, row in enumerate(rows)]
    for row, source in zip(renamed, rows, strict=True):
        row |= {"question": source["prompt"], "picture": source.get("images", source.get("image"))}
    renamed[0]["picture"] = "pictures/0.png"  # one image alone
    (folder / "own.jsonl").write_text(lines(renamed))
    (folder / "usual.jsonl").write_text(lines(rows))
    usual = NamedDataset(str(folder / "usual.jsonl")).split("train")
    read = NamedDataset(str(folder / "own.jsonl"), columns=OWN | {"id": "number"}).split("train")
    assert read["id"][:] == ["0", "1", "2", "3"]
    for name in ("prompt", "chosen", "rejected", "images"):
        assert read[name][:] == usual[name][:], name
    assert set(read.column_names) == {"id", "prompt", "chosen", "rejected", "images"}
    with PILImage.open(folder / "pictures/0.png") as image:
        table = {"question": ["What is it?"], "good": ["A box."], "bad": ["A cat."], "picture": [image.copy()]}
        Dataset.from_dict(table).cast_column("picture", Image()).to_parquet(str(folder / "own.parquet"))
    DatasetDict({"test": Dataset.from_parquet(str(folder / "own.parquet"))}).save_to_disk(folder / "saved")
    for name in ("own.parquet", "saved"):
        (row,) = NamedDataset(str(folder / name), columns=OWN).split("test")
        assert row["prompt"] == [{"role": "user", "content": "What is it?"}] and row["id"] == "0"
        assert row["chosen"] == [{"role": "assistant", "content": "A box."}]
        assert row["rejected"] == [{"role": "assistant", "content": "A cat."}]
        (image,) = row["images"]
        assert load_image(image).tobytes() == load_image(folder / "pictures/0.png").tobytes() and image["bytes"]


def test_columns_may_trade_their_names_and_win_over_the_sets_own(tmp_path, caplog):
    row = {"id": "a", "prompt": "by the judge", "question": "q", "chosen": "worse", "rejected": "better"}
    (tmp_path / "pairs.jsonl").write_text(lines([row | {"image": "a.png", "thumb": "b.png"}]))
    Dataset.from_list([row | {"image": "a.png", "thumb": "b.png"}]).to_parquet(str(tmp_path / "pairs.parquet"))
    mapping = {"prompt": "question", "chosen": "rejected", "rejected": "chosen", "images": "thumb"}
    for name in ("pairs.jsonl", "pairs.parquet"):
        caplog.clear()
        (read,) = NamedDataset(str(tmp_path / name), columns=mapping).split("train")
        assert [text_of(read[side]) for side in ("prompt", "chosen", "rejected")] == ["q", "better", "worse"]
        assert read["images"] == [{"bytes": None, "path": str(tmp_path / "b.png")}]
        assert read.keys() == {"id", "prompt", "chosen", "rejected", "images"}
        assert "image, prompt are not read: `columns` names others for them." in caplog.text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"promt": "question"}, "`columns` has promt, which no recipe reads. These are read: id, prompt, images, "),
        ({"prompt": "query"}, "`columns` names query, and .* has the columns question, good, bad. Name one of them"),
        ({"prompt": "question", "chosen": "question"}, "names one column of the dataset twice"),
        ({}, "has the columns question, good, bad.*, and a prompt is in none that is known. Say which: `columns: {pro"),
    ],
)
@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"])
def test_columns_that_are_not_there_are_named(tmp_path, name, columns, message):
    row = {"question": "q", "good": "a", "bad": "b"}
    (tmp_path / "pairs.jsonl").write_text(lines([row]))
    Dataset.from_list([row]).to_parquet(str(tmp_path / "pairs.parquet"))
    with pytest.raises(ValueError, match=message):
        NamedDataset(str(tmp_path / name), columns=columns)


def test_a_file_is_read_in_its_encoding_or_refused(tmp_path):
    row = {"prompt": "Größe?", "chosen": "a", "rejected": "b"}
    text = json.dumps(row, ensure_ascii=False) + "\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-be"):
        mark = "\ufeff" if encoding == "utf-16-be" else ""
        (tmp_path / "pairs.jsonl").write_text(mark + text, encoding=encoding)
        (read,) = NamedDataset(str(tmp_path / "pairs.jsonl")).split("train")
        assert text_of(read["prompt"]) == "Größe?"
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "q"}\n' + text, encoding="latin-1")
    with pytest.raises(ValueError, match="pairs.jsonl, line 2 is not UTF-8: .* Save the file as UTF-8"):
        NamedDataset(str(tmp_path / "pairs.jsonl"))
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\nq,a,b\n")
    with pytest.raises(ValueError, match="ends in '.csv', and .jsonl, .json, .parquet are read. Write it as one"):
        NamedDataset(str(tmp_path / "pairs.csv"))


def test_images_that_messages_hold_are_listed(tmp_path):
    """Qwen's form and OpenAI's, in the prompt or in two whole conversations."""
    PILImage.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    url = f"data:image/png;base64,{base64.b64encode((tmp_path / 'a.png').read_bytes()).decode()}"
    forms = [{"type": "image", "image": "a.png"}, {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}]
    rows = [{"prompt": "What?", "images": ["a.png"], "chosen": "a", "rejected": "b"}]
    for form in forms:
        asked = [{"role": "user", "content": [form, {"type": "text", "text": "What?"}]}]
        whole = {side: asked + [{"role": "assistant", "content": side[0]}] for side in ("chosen", "rejected")}
        rows += [{"prompt": asked, "chosen": "a", "rejected": "b"}, whole]
    clip = {"role": "user", "content": [{"type": "video_url", "video_url": "a.mp4"}, {"type": "text", "text": "What?"}]}
    rows.append({"prompt": [clip], "chosen": "a", "rejected": "b"})
    twice = {"prompt": rows[1]["prompt"], "images": ["a.png"], "chosen": "a", "rejected": "b"}
    other = [{"role": "user", "content": [{"type": "image", "image": "b.png"}, {"type": "text", "text": "What?"}]}]
    apart = rows[2] | {"rejected": other + rows[2]["rejected"][1:]}
    answers = {side: rows[2][side] for side in ("chosen", "rejected")}
    repeated = answers | {"prompt": rows[1]["prompt"]}  # whole conversations beside their prompt
    elsewhere, unasked = repeated | {"chosen": apart["rejected"]}, answers | {"prompt": "What?"}
    rows.insert(5, repeated)
    (tmp_path / "pairs.jsonl").write_text(lines(rows + [twice, apart, elsewhere, unasked]))
    read = NamedDataset(str(tmp_path / "pairs.jsonl")).split("train")
    assert read["unreadable"][:7] == [None] * 7
    refused = read["unreadable"][7:]
    assert len(refused) == 4
    assert all("its messages hold images or videos themselves, and others" in reason for reason in refused)
    assert [len(images) for images in read["images"][:7]] == [1, 1, 1, 1, 1, 1, 0]
    assert all(load_image(images[0]).getpixel((0, 0)) == (255, 0, 0) for images in read["images"][:6])
    assert read["videos"][6][0]["path"] == str(tmp_path / "a.mp4")
    places = [
        [part["type"] for part in (row["prompt"] or row["chosen"])[0]["content"]] for row in read.select(range(7))
    ]
    assert places == [["image", "text"]] * 6 + [["video", "text"]]


def test_a_row_that_cannot_be_read_is_marked(tmp_path):
    video = [{"role": "user", "content": [{"type": "video"}]}]
    rows = [{"id": "mine", "prompt": video, "images": []}, {"prompt": "q", "images": 7}]
    rows += [{"id": "gone", "prompt": "q", "images": [None]}, {"id": "good", "prompt": "q", "answer": "7"}]
    (tmp_path / "prompts.jsonl").write_text(lines(rows))
    read = NamedDataset(str(tmp_path / "prompts.jsonl")).split("train")
    assert read["id"][:] == ["mine", "1", "gone", "good"] and read["answer"][:] == [None, None, None, "7"]
    video, number, null, good = read["unreadable"][:]
    assert video.startswith("Number of videos provided (0)") and good is None
    assert number.startswith("`images` is 7, and an image or a list of images is needed.")
    assert null.startswith("an image is None, and a path")
    assert list(map(len, read["images"])) == [0, 1, 1, 0]  # as many as a choice of rows with images has to see
    (tmp_path / "prompts.jsonl").write_text(lines(rows[3:]))
    assert "unreadable" not in NamedDataset(str(tmp_path / "prompts.jsonl")).split("train").column_names


def test_answers_of_all_types_are_kept_through_what_is_done_with_them(tmp_path):
    """Arrow has one type a column. A column that the first row lacks is one, too."""
    answers = [None, 9, "nine", ["9", 9.5], True, "9", "true"]
    rows = [{"id": f"r{i}", "prompt": "q"} | ({"answer": one} if i else {}) for i, one in enumerate(answers)]
    (tmp_path / "prompts.jsonl").write_text(lines(rows))
    read = NamedDataset(str(tmp_path / "prompts.jsonl")).split("train")
    assert read["answer"][:] == answers and read["id"][:] == [f"r{i}" for i in range(7)]
    assert [type(one) for one in read["answer"][:]] == [type(one) for one in answers]
    responses = Dataset.from_list([{"responses": ["Answer: 9", "Answer: no"]}] * 7)
    concatenate_datasets([read, responses], axis=1).save_to_disk(tmp_path / "candidates")  # as sample_responses does
    again = NamedDataset(str(tmp_path / "candidates")).split("train")
    assert again["answer"][:] == answers
    verdicts = [[exact(text, row["answer"]) for text in row["responses"]] for row in again.select([1, 2, 3, 4, 5])]
    assert verdicts == [[True, False], [True, False], [True, False], [False, False], [True, False]]
    (tmp_path / "late.jsonl").write_text(lines([{"prompt": "q"}, {"prompt": "q", "answer": "7"}]))
    assert NamedDataset(str(tmp_path / "late.jsonl")).split("train")["answer"][:] == [None, "7"]


def test_a_row_that_cannot_be_stored_is_named(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "q", "answer": "9"}\n{"id": "cut", "prompt": "q", "answer": ["\\ud83d"]}\n')
    with pytest.raises(ValueError, match="prompts.jsonl, row cut: `answer`: a text holds half a character"):
        NamedDataset(str(path))
    path.write_text("[]")
    with pytest.raises(ValueError, match="prompts.jsonl holds no row"):
        NamedDataset(str(path))


def test_rows_of_a_table_without_an_image(tmp_path):
    table = Dataset.from_dict(
        {"prompt": ["q", "r"], "chosen": ["a", "a"], "rejected": ["b", None], "image": ["", None]}
    )
    table.select([1]).to_parquet(str(tmp_path / "pairs.parquet"))
    (row,) = NamedDataset(str(tmp_path / "pairs.parquet")).split("train")
    assert (row["images"], row["rejected"], text_of(row["prompt"])) == ([], None, "r")


def test_a_table_may_have_one_image_alone(tmp_path):
    """Under either name, as a path, bytes or an image of `datasets`: a path was read letter by letter."""
    PILImage.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    texts = {"prompt": ["q", "r"], "chosen": ["a", "a"], "rejected": ["b", "b"]}
    paths, dicts = ["a.png", None], [{"bytes": data, "path": None}, None]
    for name in ("image", "images"):
        strings = Dataset.from_dict(texts | {name: paths})
        bytes_ = Dataset.from_dict(texts | {name: [data, None]})
        images = Dataset.from_dict(texts | {name: dicts}).cast_column(name, Image())
        for rows in (strings, bytes_, images):
            rows.to_parquet(str(tmp_path / "pairs.parquet"))
            with_image, without = NamedDataset(str(tmp_path / "pairs.parquet")).split("train")
            assert load_image(with_image["images"][0]).size == (40, 30)
            assert (len(with_image["images"]), without["images"]) == (1, [])


def test_rows_of_text_are_left_out_with_a_count_and_what_shows_something_stays(tmp_path, caplog):
    """A picture inside a message is no row of text: it is refused by name later, and not left out in silence."""
    text, part = {"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "a.png"}}
    asked = [[{"role": "user", "content": parts}] for parts in ([text], [part, text])]
    rows = [
        {"id": "listed", "prompt": "What?", "images": ["a.png"], "chosen": "a", "rejected": "b"},
        {"id": "text", "prompt": "What?", "images": [], "chosen": "a", "rejected": "b"},
        {"id": "null", "prompt": "What?", "chosen": "a", "rejected": "b"},
        {"id": "parts", "prompt": asked[0], "chosen": "a", "rejected": "b"},
        {"id": "inside", "prompt": asked[1], "chosen": "a", "rejected": "b"},
    ]
    (tmp_path / "pairs.jsonl").write_text(lines(rows))
    dataset = NamedDataset(str(tmp_path / "pairs.jsonl"))
    dataset.keep_image_rows()
    assert dataset.split("train")["id"][:] == ["listed", "inside"]
    assert "3 of 5 rows have no image: left out." in caplog.text
    (tmp_path / "pairs.jsonl").write_text(lines(rows[1:4]))
    with pytest.raises(ValueError, match="has no row with an image, and this step trains on images. Name the column"):
        NamedDataset(str(tmp_path / "pairs.jsonl")).keep_image_rows()


def test_what_is_held_out_of_a_mixed_set_has_images(tmp_path):
    """With 2 % held out of all rows, and text rows left out of that, there was nothing to evaluate on."""
    rows = [{"id": str(i), "prompt": f"What {i}?", "chosen": "a", "rejected": "b"} for i in range(150)]
    for i in range(0, 150, 10):
        rows[i]["images"] = [f"{i}.png"]
    (tmp_path / "pairs.jsonl").write_text(lines(rows))
    dataset = NamedDataset(str(tmp_path / "pairs.jsonl"))
    dataset.keep_image_rows()
    train, test = dataset.train_and_test("train", "test")
    assert (len(train), len(test)) == (14, 1) and all(map(len, test["images"][:]))
