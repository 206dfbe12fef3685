"""The report: its numbers are those of the run's files, and texts of models and data stay text."""

import base64
import io
import json
from html.parser import HTMLParser

import pytest
from datasets import Dataset, DatasetDict, Image, List
from PIL import Image as PILImage
from video_files import frames, write_video

from vl_reward.data.videos.stored_videos import stored_video
from vl_reward.report import write_report
from vl_reward.report.gallery import Thumbnails, gallery_rows, most_telling
from vl_reward.report.measures import best_of_n, calibration
from vl_reward.report.pipeline import OUTSIDE, pipeline
from vl_reward.report.run_files import RunFiles


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202eevil\u0000\" onload='x' &amp;"
SHOWN = HOSTILE.replace("\u202e", "⟨U+202E⟩").replace("\0", "⟨U+0000⟩")


class Page(HTMLParser):
    """Elements, their attributes, the text of each script, and the cells of each table by its class or id."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.scripts, self.values, self.texts = [], [], {}, []
        self.table, self.kind = None, None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self.kind = tag
        if tag == "table":
            self.table = attributes.get("class") or attributes.get("id")
        if tag == "td" and "data-value" in attributes:
            self.values.setdefault(self.table, []).append(float(attributes["data-value"]))

    def handle_data(self, data):
        (self.scripts if self.kind == "script" else self.texts).append(data)

    def handle_endtag(self, tag):
        self.kind = None


def message(role, text):
    return [{"role": role, "content": text}]


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def make_run(folder, text="I see 1. Answer: 1"):
    """What the recipes would leave, of four prompts."""
    ids, images = ["a", "b", "c", "d"], [[PILImage.new("RGB", (200, 100), color)] for color in ("red", "blue") * 2]
    asked = {"id": ids, "prompt": [message("user", text)] * 4, "images": images}
    prompts = Dataset.from_dict(asked | {"answer": ["1", "2", "3", "4"]})
    DatasetDict({"test": prompts}).save_to_disk(folder / "prompts")
    candidates = Dataset.from_dict({"id": ids, "answer": ["1", "2", "3", "4"]})
    candidates.save_to_disk(folder / "sample_responses/candidates")
    pairs = asked | {
        "chosen": [message("assistant", reply) for reply in ("Answer: 1", "Answer: 9", "Answer: 3", text)],
        "rejected": [message("assistant", reply) for reply in ("Answer: 9", "Answer: 2", "Answer: 8", "Answer: 9")],
    }
    scores = {"score_chosen": [2.0, 5.0, 1.0, 0.5], "score_rejected": [1.0, -1.0, 0.5, 0.25]}
    labelled = Dataset.from_dict(pairs | scores | {"rule": ["best_vs_worst"] * 4})
    labelled.save_to_disk(folder / "label_preferences/preferences")
    DatasetDict({"test": Dataset.from_dict(pairs)}).save_to_disk(folder / "preferences")
    labels = {"pairs": 4, "prompts": 7, "labelled": 3, "refused": {text: 11}, "settings": {"verifier": "exact"}}
    write_json(folder / "label_preferences/labels.json", labels | {"reward_fingerprint": "f00d"})
    held_out = [[1.0, -1.0], [-3.5, 0.5], [0.0, 0.0], [2.0, 1.5]]
    write_lines(
        folder / "evaluate_reward/scores.jsonl",
        [{"id": i, "source": text, "scores": s, "lengths": [9, 12]} for i, s in zip(ids, held_out, strict=True)],
    )
    subset = {"accuracy": 0.625, "interval": [0.5, 0.75], "n": 4}
    baseline = {"shorter_is_better": {"accuracy": 0.125, "subsets": {text: 0.375}}}
    write_json(
        folder / "evaluate_reward/results.json",
        {"overall": 0.6251, "overall_interval": [0.4, 0.8], "n": 4, "subsets": {text: subset}, "baselines": baseline},
    )
    replies = {"policy": ["1", "2", "0", "0"], "mpo": ["1", "0", "3", "4"]}  # one lost, two gained, one right in both
    for name, answers in replies.items():
        lines = [{"id": i, "greedy": f"Answer: {answer}"} for i, answer in zip(ids, answers, strict=True)]
        if name == "policy":
            told = {"samples": ["x", "y"], "is_correct": [False, True], "scores": [1.0, 0.5]}
            lines = [line | told for line in lines]
        write_lines(folder / f"evaluate_{name}/responses.jsonl", lines)
        write_json(folder / f"evaluate_{name}/results.json", {"greedy_accuracy": {"policy": 0.5, "mpo": 0.75}[name]})
    write_lines(folder / "mpo/refused.jsonl", [{"id": text, "reason": text}])
    history = [{"step": 1, "loss": 0.75, "rewards/chosen": 0.1}, {"step": 2, "loss": 0.5, "eval_loss": 0.625}]
    write_json(folder / "mpo/checkpoint-2/trainer_state.json", {"log_history": history})
    step = {"step": "length", "out": 7, "in": 9, "sources": {"s": {"in": 9, "out": 7, "dropped": {text: 2}}}}
    write_json(folder / "prepared/audit.json", {"sources": {"s": {"pairs": 9}}, "steps": [step]})
    write_json(folder / "demo.json", {"seed": 3, "seconds": {"mpo": 12.5}, "commands": {"mpo": f"python {text}"}})
    write_json(folder / "results.json", {"policy": {"mpo_accuracy": 0.7512345678}, "versions": {"trl": text}})
    return folder


def data_of(page):
    return json.loads(page.scripts[0])


def test_numbers_are_those_of_the_files(tmp_path):
    page = Page(write_report([make_run(tmp_path / "run")], tmp_path / "report.html"))
    assert page.values["summary"] == [0.7512345678]
    assert page.values["accuracy"] == [0.6251, 4, 0.125, 0.625, 4, 0.375]
    assert page.values["changes"] == [1, 1, 2, 0]  # right in both, lost, gained, wrong in both
    assert page.values["best_of_n"] == [1, 0, 0, 0, 2, 0.5, 0, 1]
    assert page.values["labels"] == [4, 7, 3, 11]
    assert page.values["audit"] == [9, 7]
    assert page.values["evaluate_mpo"] == [0.75]
    assert page.values["curves_mpo"] == [1, 0.75, 0.1, 2, 0.5, 0.625]  # a reward that was not logged is no number
    assert "python I see 1. Answer: 1" in page.texts and "12.5 s" in page.texts
    assert "mpo: loss" in page.texts and "mpo: rewards/chosen" in page.texts and "f00d" in page.texts
    assert not any("results.json says" in text for text in page.texts)  # the recount of correct responses agrees


def test_a_benchmark_has_a_table_of_its_own(tmp_path):
    run = make_run(tmp_path / "run")
    subset = {"accuracy": 0.25, "interval": [0.0, 0.75], "n": 4}
    results = {"overall": 0.4375, "n": 8, "macro": 0.5625, "subsets": {"general": subset}, "baselines": {}}
    write_json(run / "evaluate_reward_vl_rewardbench/results.json", results)
    page = Page(write_report([run], tmp_path / "report.html"))
    assert page.values["accuracy"] == [0.6251, 4, 0.125, 0.625, 4, 0.375, 0.4375, 8, 0.5625, 0.25, 4]
    assert {"evaluate_reward", "evaluate_reward_vl_rewardbench", "mean of the subsets"} <= {*page.texts}


def test_the_longest_log_of_a_training_is_drawn(tmp_path):
    """The embedded world's own models leave checkpoints alone."""
    logs = [{"step": step, "loss": 1 / step} for step in (1, 2, 4)]
    for number in (1, 2):
        state = {"log_history": logs[: number + 1]}
        write_json(tmp_path / f"base/training/checkpoint-{number}/trainer_state.json", state)
    page = Page(write_report([tmp_path / "base"], tmp_path / "report.html"))
    assert page.values["curves_training"] == [1, 1.0, 2, 0.5, 4, 0.25] and "training: loss" in page.texts


def test_gallery_holds_every_pair_with_its_verdict(tmp_path):
    page = Page(write_report([make_run(tmp_path / "run")], tmp_path / "report.html"))
    rows = {(row["kind"], row["id"]): row for row in data_of(page)["rows"]}
    assert len(rows) == 8 and len(data_of(page)["pictures"]) == 2  # red and blue, each once
    assert {i: rows["labelled", i]["correct"] for i in "abcd"} == {"a": True, "b": False, "c": True, "d": None}
    assert {i: rows["held-out", i]["correct"] for i in "abcd"} == {"a": True, "b": False, "c": None, "d": True}
    wrong = rows["labelled", "b"]
    assert (wrong["chosen"], wrong["rejected"], wrong["words"]) == ("Answer: 9", "Answer: 2", ["wrong", "right"])
    assert (wrong["scores"], wrong["margin"]) == ([5.0, -1.0], 6.0)
    assert rows["held-out", "b"]["margin"] == -4.0 and rows["held-out", "b"]["rejected"] == "Answer: 2"


def test_gallery_shows_the_first_frame_of_a_video(tmp_path):
    """Of a file, of a list of frames, and beside an image; what cannot be read is counted, and what is no frame."""
    clip = write_video(tmp_path / "clip.mp4", frames(12)[3:])
    (tmp_path / "text.mp4").write_text("no video")
    for number, frame in enumerate(frames(5)):
        frame.save(tmp_path / f"{number}.png")
    shown = [str(tmp_path / f"{number}.png") for number in (2, 4, 1)]
    asked = [{"type": "video"}, {"type": "text", "text": "How many?"}]
    path = {"bytes": None, "frames": None, "fps": None}
    given = [
        ([stored_video(str(clip), tmp_path)], []),
        ([stored_video({"frames": shown, "fps": 4.0}, tmp_path)], [shown[1]]),
        ([path | {"path": str(tmp_path / name)} for name in ("text.mp4", "gone.mp4")], []),
        ([path | {"path": "https://example.com/clip.mp4"}], []),
    ]
    sides = {"chosen": message("assistant", "yes"), "rejected": message("assistant", "no"), "rule": "best_vs_worst"}
    sides |= {"id": "0", "prompt": [{"role": "user", "content": asked}]}
    thumbnails, found = Thumbnails(), []
    for number, (videos, images) in enumerate(given):
        folder = tmp_path / f"run{number}"
        Dataset.from_list([sides | {"videos": videos, "images": images}]).cast_column(
            "images", List(Image())
        ).save_to_disk(folder / "label_preferences/preferences")
        (row,), _ = gallery_rows(RunFiles(folder, "run"), 10, thumbnails)
        assert row["prompt"] == "[video]\nHow many?"
        found.append((row["videos"], row["pictures"], row["unreadable_pictures"]))
    assert found == [([[0, 9]], [], 0), ([[2, 3]], [1], 0), ([], [], 2), ([], [], 1)]
    pictures = [PILImage.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in thumbnails.urls]
    assert [round(sum(picture.getpixel((48, 32))) / 60) for picture in pictures] == [3, 4, 2]  # the shades' places


def test_hostile_texts_stay_text(tmp_path):
    plain = Page(write_report([make_run(tmp_path / "run")], tmp_path / "plain.html"))
    page = Page(write_report([make_run(tmp_path / "bad", HOSTILE)], tmp_path / "report.html"))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert [set(found) for _, found in page.elements] == [set(found) for _, found in plain.elements]
    html = (tmp_path / "report.html").read_text()
    assert "\u202e" not in html and "\0" not in html
    assert SHOWN in page.texts
    assert {row["prompt"] for row in data_of(page)["rows"]} == {SHOWN}


def make_loop(folder, out="runs/mine"):
    """A run of four steps whose first training was done again, last of all, on a model from elsewhere."""
    recipe = "python recipes/{0}.py --dataset_name {1}/{2} --model_name_or_path {3} --output_dir {1}/{0}".format
    commands = {
        "world": f"python -m vl_reward.tiny --output_dir {out}",
        "label_preferences": recipe("label_preferences", out, "prompts", f"{out}/reward_stage1"),
        "mpo": recipe("mpo", out, "label_preferences/preferences", f"{out}/policy"),
        "reward_stage1": recipe("reward_stage1", out, "preferences", "Qwen/Qwen2.5-VL-7B-Instruct"),
    }
    for name, rows in {"prompts": 3, "label_preferences/preferences": 5}.items():
        pair = dict.fromkeys(("id", "prompt", "chosen", "rejected", "rule"), "1")
        Dataset.from_list([pair] * rows).save_to_disk(folder / name)
    DatasetDict({"train": Dataset.from_dict({"id": [0, 1]})}).save_to_disk(folder / "preferences")
    (folder / "policy").mkdir()
    (folder / "policy/model.safetensors").write_bytes(b"0" * 1_500_000)
    write_json(folder / "demo.json", {"seconds": dict.fromkeys(commands, 4.0) | {"mpo": 2.0}, "commands": commands})
    return RunFiles(folder, "mine")


def test_pipeline_is_what_the_commands_read_in_the_order_of_the_loop(tmp_path):
    found = pipeline(make_loop(tmp_path))
    reads = {box["step"]: [(thing.name, thing.writer, thing.facts) for thing in box["reads"]] for box in found["steps"]}
    assert list(reads.items()) == [
        (OUTSIDE, []),
        ("world", []),
        ("reward_stage1", [("Qwen/Qwen2.5-VL-7B-Instruct", OUTSIDE, ""), ("preferences", "world", "2 train")]),
        ("label_preferences", [("reward_stage1", "reward_stage1", ""), ("prompts", "world", "3 rows")]),
        ("mpo", [("policy", "world", "1.5 MB"), ("label_preferences/preferences", "label_preferences", "5 rows")]),
    ]
    assert [box["share"] for box in found["steps"]] == [0, 1.0, 1.0, 1.0, 0.5]
    downs = {(line["lane"], line["row"]) for line in found["lanes"] if line["shape"] == "down"}
    assert len(downs) == sum(line["shape"] == "down" for line in found["lanes"]) == 16  # no two things in one place
    ends = [(line["shape"], line["row"]) for line in found["lanes"] if line["shape"] != "down"]
    assert sorted(ends) == sorted(
        [("out", row) for row in (0, 1, 1, 1, 2, 3)] + [("in", row) for row in (2, 2, 3, 3, 4, 4)]
    )


def test_pipeline_without_commands_is_that_of_the_demo(tmp_path):
    (tmp_path / "mpo").mkdir()
    (tmp_path / "evaluate_mpo").mkdir()
    (box, mpo, evaluation) = pipeline(RunFiles(tmp_path, "run"))["steps"]
    assert [thing.name for thing in mpo["reads"]] == ["policy", "label_preferences/preferences"]
    assert [(thing.name, thing.writer) for thing in evaluation["reads"]][0] == ("mpo", "mpo")
    assert [thing.name for thing in box["writes"]] == [
        "policy",
        "label_preferences/preferences",
        "prompts",
        "reward_stage2",
    ]


def test_a_command_cannot_make_the_page_look_outside_its_run(tmp_path):
    Dataset.from_dict({"id": [1]}).save_to_disk(tmp_path / "secret")
    for name in ("../secret", str(tmp_path / "secret"), "x' unclosed", ".", "//"):
        command = f"python recipes/mpo.py --dataset_name {name} --output_dir outputs/mpo"
        write_json(tmp_path / "run/demo.json", {"seconds": {"mpo": 1.0}, "commands": {"mpo": command}})
        run = RunFiles(tmp_path / "run", "run")
        assert all(thing.facts == "" for box in pipeline(run)["steps"] for thing in box["reads"])
        write_report([tmp_path / "run"], tmp_path / "report.html")


def test_long_lines_and_half_surrogates(tmp_path):
    run = make_run(tmp_path / "run", "x" * 100_000)
    write_lines(run / "mpo/refused.jsonl", [{"id": "\ud800", "reason": "half"}])
    page = Page(write_report([run], tmp_path / "report.html"))
    assert {row["prompt"] for row in data_of(page)["rows"]} == {"x" * 100_000}
    assert "⟨U+D800⟩" in page.texts


def test_nothing_comes_from_the_network(tmp_path):
    page = Page(write_report([make_run(tmp_path / "run")], tmp_path / "report.html"))
    assert not any(tag in ("link", "iframe", "base", "object") for tag, _ in page.elements)
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action"):
            assert attributes.get(name, "#").startswith("#")
    html = (tmp_path / "report.html").read_text()
    assert "http://" not in html and "https://" not in html and "@import" not in html


def test_an_empty_run_names_what_is_missing(tmp_path):
    (tmp_path / "run").mkdir()
    page = Page(write_report([tmp_path / "run"], tmp_path / "report.html"))
    assert data_of(page) == {"rows": [], "pictures": []}
    missing = {"evaluate_reward/results.json", "label_preferences/labels.json", "*/audit.json", "*/refused.jsonl"}
    assert missing <= {*page.texts}


def test_runs_stand_side_by_side(tmp_path):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two")]
    write_json(runs[1] / "results.json", {"policy": {"mpo_accuracy": 0.5}})
    page = Page(write_report(runs, tmp_path / "report.html"))
    assert page.values["summary"] == [0.7512345678, 0.5]
    assert page.texts.count("mpo: loss") == 1  # a line for each run in one plot
    assert {"one", "two", "two, eval"} <= {*page.texts}
    assert page.values["curves_mpo"] == [1, 0.75, 0.1, 2, 0.5, 0.625] * 2
    with pytest.raises(ValueError, match="given twice"):
        write_report([runs[0], runs[0]], tmp_path / "twice.html")
    with pytest.raises(ValueError, match="is no folder"):
        write_report([tmp_path / "none"], tmp_path / "none.html")


def test_errors_come_first_when_the_gallery_is_cut():
    rows = [{"correct": n % 5 != 0, "margin": float(n)} for n in range(100)]
    found = most_telling(rows, 30)
    assert [row["margin"] for row in found[:20]] == [float(n) for n in range(95, -1, -5)]
    assert len({row["margin"] for row in found}) == 30
    assert [row["margin"] for row in most_telling(rows, 3)] == [95.0, 90.0, 85.0]


def test_calibration_says_the_odds_of_bradley_terry():
    lines = [{"scores": [gap, 0.0]} for gap in [1.0, 1.0, 1.0, -1.0] * 8]
    bins = calibration(lines)
    assert [found["pairs"] for found in bins] == [4] * 8
    assert all(abs(found["said"] - 0.7310585786300049) < 1e-12 for found in bins)
    assert sum(found["was"] * 4 for found in bins) == 24
    assert calibration([{"scores": [0.0, 0.0]}]) == [{"gap": 0.0, "said": 0.5, "was": 0.5, "pairs": 1}]


def test_best_of_n_takes_the_best_score():
    lines = [
        {"samples": ["a", "b", "c"], "is_correct": [False, True, False], "scores": [None, 1.0, 3.0]},
        {"samples": ["a", "b", "c"], "is_correct": [False, False, True], "scores": [0.0, -1.0, 3.0]},
    ]
    assert best_of_n(lines) == [
        {"n": 1, "mean": 0.0, "best": 0.0, "pass": 0.0},
        {"n": 2, "mean": 0.25, "best": 0.5, "pass": 0.5},
        {"n": 3, "mean": pytest.approx(1 / 3), "best": 0.5, "pass": 1.0},
    ]
