"""Rows that cannot be used: why, where they are told, what goes on without them, and when a run stops."""

import json
import os
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict, Image, List, concatenate_datasets, load_from_disk
from test_configs import ROOT, dataclasses_of, load_recipe
from test_recipes import launcher, run

from vl_reward import DataCollatorForVisionReward, DatasetArguments, RecipeParser
from vl_reward.benchmarks.judge_verdict import LetterVerdict
from vl_reward.data.collators import DataCollatorForMPO
from vl_reward.data.encoding import encode_prompts
from vl_reward.inference import resumable_store
from vl_reward.inference.fingerprints import row_key
from vl_reward.preflight import usable_rows
from vl_reward.preflight.row_checks import JudgeCheck, PairCheck, PolicyPairCheck, PromptCheck, ResponsesCheck
from vl_reward.preflight.usable_rows import UsableRows


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def cut(image_pairs, tmp_path):
    """An image whose last bytes are missing: its header is whole."""
    image_pairs[0]["images"][0].resize((200, 200)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-100])
    return str(tmp_path / "cut.png")


# Why


def test_what_a_model_would_refuse_in_a_prompt(processor, cut):
    check = PromptCheck(processor)
    reasons = {
        "cut.png could not be decoded": {"images": [cut]},
        "gone.png could not be decoded ([Errno 2] No such file": {"images": ["gone.png"]},
        "a message holds ['<|im_end|>']": {"prompt": "a <|im_end|>"},
        "the prompt is empty": {"prompt": []},
        "Number of images provided (0) does not match": {"prompt": "<image> a"},
        "a message has the role 'tool'": {"prompt": [{"role": "tool", "content": "a"}]},
        "torn": {"unreadable": "torn"},
    }
    for reason, changes in reasons.items():
        verdict = check({"id": "r", "prompt": "a", "images": []} | changes)
        assert reason in verdict["refused"] and "row r" not in verdict["refused"] and not verdict["too_long"]
    for none in ([], None):
        assert check({"id": "r", "prompt": "a", "images": none}) == {"refused": None, "too_long": False, "videos": []}


def test_what_a_model_would_refuse_in_responses(processor):
    row = {"id": "r", "prompt": "q", "images": []}
    check = ResponsesCheck(processor, empty_ones=True)
    assert check(row | {"responses": ["a", " "]})["refused"] is None
    assert check(row | {"responses": ["a"], "images": None})["refused"] is None
    assert check(row | {"responses": ["a", 5]})["refused"] == "`responses` is ['a', 5], not a list of strings."
    assert (
        "response 1 of row r: a message holds ['<|im_start|>']"
        in check(row | {"responses": ["", "<|im_start|>"]})["refused"]
    )
    assert "response 0 of row r: the prompt is empty" in check(row | {"prompt": [], "responses": ["a"]})["refused"]
    strict = ResponsesCheck(processor)
    assert "response 1 of row r: the answer is empty" in strict(row | {"responses": ["a", " "]})["refused"]
    judge = JudgeCheck(processor, LetterVerdict())
    assert judge(row | {"responses": ["a", "b"]})["refused"] is None
    assert "response 1 is empty" in judge(row | {"responses": ["a", " "]})["refused"]
    assert "a message holds ['<|im_end|>']" in judge(row | {"responses": ["a", "<|im_end|>"]})["refused"]
    checks = [check, strict, judge, PromptCheck(processor), PromptCheck(processor, 5), PairCheck(processor, 5)]
    assert len({one.fingerprint() for one in checks}) == 6


def test_what_training_would_refuse_in_a_pair(processor, cut):
    sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    pair = {"id": "r", "prompt": [{"role": "user", "content": "q"}], "images": [], **sides}
    for kind in (PairCheck, PolicyPairCheck):
        check = kind(processor)
        assert check(pair)["refused"] is None
        assert "the rejected response is empty" in check(pair | {"rejected": ""})["refused"]
        assert "holds ['<|endoftext|>']" in check(pair | {"chosen": "<|endoftext|>"})["refused"]
        assert "cut.png could not be decoded" in check(pair | {"images": [cut]})["refused"]
    assert "`margin` is nan" in PairCheck(processor)(pair | {"margin": float("nan")})["refused"]


def test_tokens_counted_from_headers_are_those_of_the_batch(processor, mixed_pairs):
    """A row with as many tokens as are allowed is let through, and one more is too many."""
    pairs = [{"id": i, **row} for i, row in enumerate(mixed_pairs[:6])]
    pairs += [pairs[0] | {"chosen": [{"role": "assistant", "content": "\n\n 9 \n"}]}]
    for row in pairs:
        batch = DataCollatorForVisionReward(processor)([row])
        of_policy = DataCollatorForMPO(processor)([row])
        n_tokens = {PairCheck: batch["attention_mask"].sum(1), PolicyPairCheck: of_policy["attention_mask"].sum(1)}
        answered = row | {"responses": [row[side][0]["content"] for side in ("chosen", "rejected")]}
        for kind, lengths in {**n_tokens, ResponsesCheck: n_tokens[PairCheck]}.items():
            longest = max(lengths).item()
            assert kind(processor, longest)(answered) == {"refused": None, "too_long": False, "videos": []}
            verdict = kind(processor, longest - 1)(answered)
            assert verdict["too_long"] and f"has {longest} tokens, image tokens included" in verdict["refused"]
        asked = encode_prompts(processor, [row["prompt"]], [row["images"]], ["r"])["input_ids"].shape[1]
        assert not PromptCheck(processor, asked)(row)["refused"] and PromptCheck(processor, asked - 1)(row)["too_long"]


def test_a_row_that_is_too_long_and_bad_is_bad(processor, cut):
    verdict = PromptCheck(processor, 1)({"id": "r", "prompt": "a", "images": [cut]})
    assert "cut.png could not be decoded" in verdict["refused"] and not verdict["too_long"]


# Where, and how many


class Check(PromptCheck):
    """Refuses what is odd, and notes what it is asked."""

    asked = []

    def fingerprint(self):
        return "odd"

    def __call__(self, row):
        self.asked.append(row["prompt"])
        return {"refused": "it is odd" if int(row["prompt"]) % 2 else None, "too_long": False, "videos": []}


@pytest.fixture
def check(processor):
    Check.asked.clear()
    return Check(processor)


def rows_of(numbers):
    return Dataset.from_list([{"id": f"r{i}", "prompt": str(i), "images": [], "answer": i} for i in numbers])


def test_rows_that_are_refused_are_told_and_left_out(check, tmp_path):
    usable = UsableRows(rows_of([0, 1, 2, 5, 4, 6]), check, tmp_path, 0.4)
    assert (usable.places, usable.left_out) == ([0, 2, 4, 5], [1, 3]) and usable.rows["answer"][:] == [0, 2, 4, 6]
    assert lines_of(tmp_path / "refused.jsonl") == usable.refused
    assert usable.refused == [{"id": "r1", "reason": "it is odd"}, {"id": "r5", "reason": "it is odd"}]


def test_more_than_max_refused_stop_the_run(check, tmp_path):
    rows = rows_of([0, 1, 2, 3])
    assert len(UsableRows(rows, check, tmp_path, 0.5).rows) == 2
    message = (
        "2 of 4 rows cannot be used, 50.0%, and `max_refused` is 0.49: row r1: it is odd; row r3: it is odd. .*refu"
    )
    with pytest.raises(ValueError, match=message):
        UsableRows(rows, check, tmp_path, 0.49)
    assert len(lines_of(tmp_path / "refused.jsonl")) == 2
    with pytest.raises(ValueError, match="1 of 200 rows cannot be used"):
        UsableRows(rows_of([1, *range(0, 398, 2)]), check, tmp_path, 0.0)
    assert len(UsableRows(rows_of([1, *range(0, 398, 2)]), check, tmp_path, DatasetArguments.max_refused).rows) == 199
    with pytest.raises(ValueError, match="2 of 2 rows cannot be used, 100.0%, and `max_refused` is 1"):
        UsableRows(rows_of([1, 3]), check, tmp_path, 1.0)
    with pytest.raises(ValueError, match="The set has no rows"):
        UsableRows(rows_of([0]).select([]), check, tmp_path, 1.0)
    with pytest.raises(ValueError, match="`max_refused: 1.5` is no fraction"):
        DatasetArguments("some/dataset", max_refused=1.5)
    assert len(UsableRows(rows_of([2]), check, tmp_path, 0.0).rows) == 1
    assert (tmp_path / "refused.jsonl").read_text() == ""  # that of an earlier set is gone


def test_a_row_is_met_again_only_when_it_has_changed(check, tmp_path, monkeypatch):
    monkeypatch.setattr(usable_rows, "CHECKED_AT_A_TIME", 2)
    UsableRows(rows_of(range(6)), check, tmp_path, 0.5)
    assert check.asked == list("012345")
    check.asked.clear()
    assert UsableRows(rows_of(range(6)), check, tmp_path, 0.5).places == [0, 2, 4] and check.asked == []
    assert UsableRows(rows_of([0, 1, 2, 8, 4, 5]), check, tmp_path, 0.5).places == [0, 2, 3, 4]
    assert check.asked == ["2", "8"]


def test_a_row_without_its_image_or_a_prompt_has_a_key(tmp_path):
    row = {"id": "r", "prompt": "q", "images": [{"bytes": None, "path": str(tmp_path / "a.png")}]}
    os.mkfifo(tmp_path / "pipe")
    odd = [row, row | {"images": [str(tmp_path)]}, row | {"images": [str(tmp_path / "pipe")]}, row | {"prompt": 5}]
    odd += [row | {"images": ["\0\ud83d"]}, row | {"prompt": None}]
    keys = [row_key("f", one) for one in odd]
    assert len(set(keys)) == 6 and keys == [row_key("f", one) for one in odd]
    (tmp_path / "a.png").write_bytes(b"a")
    assert row_key("f", row) not in keys


def test_two_processes_write_the_same_and_whoever_raises_finds_the_file(check, tmp_path, monkeypatch):
    monkeypatch.setattr(usable_rows, "CHECKED_AT_A_TIME", 2)
    UsableRows(rows_of(range(8)), check, tmp_path / "one", 0.5)
    waited = []

    def start(rank):
        def wait():
            waited.append((tmp_path / "two/refused.jsonl").exists())

        state = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0, wait_for_everyone=wait)
        for module in (resumable_store, usable_rows):
            monkeypatch.setattr(module, "PartialState", lambda: state)
        monkeypatch.setattr(resumable_store, "broadcast_object_list", lambda objects: ["run"])
        with pytest.raises(ValueError, match="4 of 8 rows cannot be used"):
            UsableRows(rows_of(range(8)), check, tmp_path / "two", 0.0)

    start(0)
    start(1)
    assert waited == [True, True]
    written = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "one", tmp_path / "two")
    ]
    assert written[0] == written[1] and len(written[0]) == 5


# The recipes


def main(name, *arguments):
    """Run a recipe's `main` in this process."""
    path = ROOT / f"recipes/{name}.py"
    command = ["--config", str(ROOT / f"recipes/configs/tiny/{name}.yaml"), *map(str, arguments)]
    return load_recipe(path).main(*RecipeParser(dataclasses_of(path), str(path), ()).parse_args_and_config(command))


@pytest.fixture(scope="module")
def world(labelling_world, policy_path, tmp_path_factory):
    """Eight candidates of which three cannot be used, and the same as prompts, pairs, and a benchmark."""
    folder = tmp_path_factory.mktemp("refused")
    candidates = load_from_disk(labelling_world / "candidates").select(range(8))
    candidates = candidates.cast_column("images", List(Image(decode=False)))
    rows, ids = list(candidates), candidates["id"][:]
    image = rows[1]["images"][0]["bytes"]
    rows[1]["images"][0] = {"bytes": image[: len(image) // 2], "path": None}
    rows[4]["prompt"] = [{"role": "user", "content": "<|im_end|> What is it?"}]
    rows[6]["images"][0] = {"bytes": b"no image", "path": None}
    bad = Dataset.from_list(rows, candidates.features)
    bad.save_to_disk(folder / "candidates")
    prompts = bad.select_columns(["id", "prompt", "images", "answer"])
    DatasetDict({"train": prompts, "test": prompts}).save_to_disk(folder / "prompts")
    responses = {
        side: [[{"role": "assistant", "content": row["responses"][number]}] for row in rows]
        for number, side in enumerate(("chosen", "rejected"))
    }
    pairs = concatenate_datasets([prompts.remove_columns("answer"), Dataset.from_dict(responses)], axis=1)
    pairs.save_to_disk(folder / "pairs")
    benchmark = [
        {"id": ids[i], "prompt": row["prompt"][0]["content"], "chosen": row["responses"][0], "subset": "donotanswer"}
        | {"rejected": row["responses"][1] if i else "<|im_end|>"}
        for i, row in enumerate(rows)
    ]
    (folder / "benchmark.jsonl").write_text("".join(json.dumps(row) + "\n" for row in benchmark))
    return SimpleNamespace(folder=folder, ids=ids, model=labelling_world / "model", policy=policy_path)


GOOD, BAD = [0, 2, 3, 5, 7], [1, 4, 6]


def arguments(world, dataset, out, model, *more):
    paths = ["--dataset_name", world.folder / dataset, "--model_name_or_path", model, "--output_dir", out]
    return [*paths, "--max_refused", "0.4", *more]


def check_refused(out, world, expected=BAD):
    told = lines_of(out / "refused.jsonl")
    assert [row["id"].split(" ")[-1].strip("()") for row in told] == [world.ids[i] for i in expected]
    assert "could not be decoded" in told[0]["reason"] and "['<|im_end|>']" in told[1]["reason"]


def test_sampling_goes_on_without_them(world, tmp_path):
    main("sample_responses", *arguments(world, "prompts", tmp_path, world.policy, "--max_new_tokens", "4"))
    check_refused(tmp_path, world)
    candidates, report = load_from_disk(tmp_path / "candidates"), json.loads((tmp_path / "sampling.json").read_text())
    assert candidates["id"][:] == [world.ids[i] for i in GOOD] and all(candidates["responses"][:])
    assert (report["prompts"], report["refused_rows"]) == (5, 3)


def test_too_many_stop_before_the_model_works(world, tmp_path, monkeypatch):
    monkeypatch.setattr("vl_reward.ResponseSampler.__call__", lambda *args: pytest.fail("the model was asked"))
    with pytest.raises(ValueError, match="3 of 8 rows cannot be used, 37.5%, and `max_refused` is 0.01: row "):
        main("sample_responses", *arguments(world, "prompts", tmp_path, world.policy, "--max_refused", "0.01"))
    check_refused(tmp_path, world)


def test_labelling_goes_on_without_them(world, tmp_path):
    main("label_preferences", *arguments(world, "candidates", tmp_path, world.model, "--min_score_margin", "0"))
    check_refused(tmp_path, world)
    report = json.loads((tmp_path / "labels.json").read_text())
    assert (report["prompts"], report["refused_rows"]) == (5, 3)
    assert [row["id"] for row in lines_of(tmp_path / "scores.jsonl")] == [world.ids[i] for i in GOOD]
    assert set(load_from_disk(tmp_path / "preferences")["id"]) <= {world.ids[i] for i in GOOD}


def test_scoring_leaves_them_out_of_its_file(world, tmp_path):
    main("score_responses", *arguments(world, "candidates", tmp_path, world.model))
    check_refused(tmp_path, world)
    report = json.loads((tmp_path / "scoring.json").read_text())
    assert [row["id"] for row in lines_of(tmp_path / "scored.jsonl")] == [world.ids[i] for i in GOOD]
    assert (report["rows"], report["refused_rows"]) == (8, 3)


def test_a_file_of_empty_responses_is_an_error(world, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "responses": ["", " "]}\n')
    with pytest.raises(ValueError, match="No response has a score"):
        main("score_responses", *arguments(world, tmp_path / "rows.jsonl", tmp_path, world.model))


def test_one_row_of_a_file_that_cannot_be_read_is_left_out(world, tmp_path):
    rows = [{"id": i, "prompt": "q", "response": "a"} for i in range(3)]
    rows[1] |= {"images": [None]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main("score_responses", *arguments(world, tmp_path / "rows.jsonl", tmp_path, world.model))
    assert [row["id"] for row in lines_of(tmp_path / "scored.jsonl")] == [0, 2]
    (row,) = lines_of(tmp_path / "refused.jsonl")
    assert row["id"] == "1" and row["reason"].startswith("an image is None, and a path or bytes are needed")


def test_own_preferences_are_measured_without_them(world, tmp_path):
    main("evaluate_reward", *arguments(world, "pairs", tmp_path, world.model))
    check_refused(tmp_path, world)
    results = json.loads((tmp_path / "results.json").read_text())
    lines = lines_of(tmp_path / "scores.jsonl")
    assert (results["n"], results["refused_rows"]) == (5, 3) and [row["id"] for row in lines] == [
        world.ids[i] for i in GOOD
    ]
    assert results["overall"] == sum(row["scores"][0] > row["scores"][1] for row in lines) / 5


def test_of_a_benchmark_they_are_wrong(world, tmp_path):
    more = ["--benchmark", "rewardbench", "--data_files", world.folder / "benchmark.jsonl"]
    main("evaluate_reward", *arguments(world, "pairs", tmp_path / "model", world.model, *more))
    assert [row["id"].split(" ")[0] for row in lines_of(tmp_path / "model/refused.jsonl")] == ["0", "4"]
    results = json.loads((tmp_path / "model/results.json").read_text())
    scores = [row["scores"] for row in lines_of(tmp_path / "model/scores.jsonl")]
    assert [i for i, row in enumerate(scores) if row is None] == [0, 4]
    right = sum(row[0] > row[1] for row in scores if row)
    assert (results["n"], results["refused_rows"]) == (8, 2) and results["subsets"]["donotanswer"][
        "accuracy"
    ] == right / 8
    assert results["without_refused_rows"]["subsets"]["donotanswer"] == right / 6
    assert "8 rows, 2 refused and counted as wrong" in (tmp_path / "model/table.md").read_text()
    more += ["--scores_file", tmp_path / "model/scores.jsonl"]
    main("evaluate_reward", *arguments(world, "pairs", tmp_path / "file", world.model, *more))
    again = json.loads((tmp_path / "file/results.json").read_text())
    assert again | {"model": results["model"]} == results


@pytest.mark.parametrize("benchmark", [None, "rewardbench"])
def test_a_judge_is_not_asked_about_them(world, tmp_path, monkeypatch, benchmark):
    monkeypatch.setattr("vl_reward.ResponseSampler.__call__", lambda self, p, *_, **__: ([["[[A]]"]] * len(p), None))
    more = ["--benchmark", benchmark, "--data_files", world.folder / "benchmark.jsonl"] if benchmark else []
    main("evaluate_judge", *arguments(world, "pairs", tmp_path, world.policy, "--votes_per_order", "1", *more))
    results, lines = json.loads((tmp_path / "results.json").read_text()), lines_of(tmp_path / "votes.jsonl")
    # The first answer is preferred in both orders: no majority, for which RewardBench gives half a point.
    if benchmark:
        assert [row["row"] for row in lines] == [1, 2, 3, 5, 6, 7]
        assert (results["n"], results["refused_rows"], results["undecided"]) == (8, 2, 6)
        assert results["subsets"]["donotanswer"]["accuracy"] == 0.5 * 6 / 8
    else:
        check_refused(tmp_path, world)
        assert [row["row"] for row in lines] == GOOD and (results["n"], results["refused_rows"]) == (5, 3)


def test_a_policy_is_measured_without_them(world, tmp_path):
    more = ["--reward_model", world.model, "--max_new_tokens", "4", "--num_generations", "0"]
    main("evaluate_policy", *arguments(world, "prompts", tmp_path, world.policy, *more))
    check_refused(tmp_path, world)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["n_prompts"], results["refused_rows"]) == (5, 3)
    assert [row["id"] for row in lines_of(tmp_path / "responses.jsonl")] == [world.ids[i] for i in GOOD]


@pytest.fixture
def cut_off(monkeypatch):
    """A sampler whose continuations are other ones, and finished."""
    answers = lambda self, prompts, images: ([[" something else"]] * len(prompts), [["stop"]] * len(prompts))  # noqa: E731
    monkeypatch.setattr("vl_reward.ResponseSampler.__call__", answers)


def test_pairs_without_an_image_are_made_without_them(world, tmp_path, cut_off):
    main("dropout_negatives", *arguments(world, "candidates", tmp_path, world.policy))
    check_refused(tmp_path, world)
    report = json.loads((tmp_path / "negatives.json").read_text())
    assert (report["prompts"], report["refused_rows"], report["pairs"]) == (5, 3, 5)
    assert load_from_disk(tmp_path / "preferences")["id"][:] == [world.ids[i] for i in GOOD]


def test_candidates_without_finish_reasons_count_as_finished(world, tmp_path, cut_off, capsys):
    candidates = load_from_disk(world.folder / "candidates").select(GOOD)
    all_stop = [["stop"] * len(row) for row in candidates["responses"]]
    bare = candidates.remove_columns("finish_reasons")
    bare.save_to_disk(tmp_path / "bare")
    bare.add_column("finish_reasons", all_stop).save_to_disk(tmp_path / "told")
    for recipe, model in (("label_preferences", world.model), ("dropout_negatives", world.policy)):
        more = ["--min_score_margin", "0"] if recipe == "label_preferences" else []
        for name in ("bare", "told"):
            main(recipe, *arguments(world, tmp_path / name, tmp_path / recipe / name, model, *more))
            said = "The candidates have no `finish_reasons`: every response counts" in capsys.readouterr().out
            assert said == (name == "bare")
        made = [load_from_disk(tmp_path / recipe / name / "preferences") for name in ("bare", "told")]
        assert made[0][:] == made[1][:] and len(made[0]) >= 5


def test_two_processes_of_a_recipe_write_what_one_does(world, tmp_path):
    command = [str(ROOT / "recipes/score_responses.py"), "--config"]
    command.append(str(ROOT / "recipes/configs/tiny/score_responses.yaml"))
    command += [str(word) for word in arguments(world, "candidates", "two", world.model, "--shard_size", "2")]
    run([*launcher("cpu_2_processes", tmp_path), *command], tmp_path)
    main("score_responses", *arguments(world, "candidates", tmp_path / "one", world.model, "--shard_size", "2"))
    told, scored = ([tmp_path / one / name for one in ("one", "two")] for name in ("refused.jsonl", "scored.jsonl"))
    assert told[0].read_bytes() == told[1].read_bytes() and len(lines_of(told[0])) == 3
    scored = [[(row["id"], score) for row in lines_of(path) for score in row["scores"]] for path in scored]
    assert [id for id, _ in scored[0]] == [id for id, _ in scored[1]]
    one, two = ([score for _, score in rows if score] for rows in scored)
    assert one == pytest.approx(two, abs=1e-4)  # this process has other settings of MKL, and rounds in another way
