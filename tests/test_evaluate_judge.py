"""recipes/evaluate_judge.py: what a judge is asked, how its verdicts are read, and how votes become results."""

import json
import random

import pytest
from test_configs import ROOT, dataclasses_of, load_recipe

from vl_reward import RecipeParser
from vl_reward.benchmarks.judge_verdict import LetterVerdict, NumberedVerdict


RECIPE = ROOT / "recipes/evaluate_judge.py"


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Both see it.\n**Overall Judgment** - Answer 1 is better.", 0),
        ("Overall Judgment: Answer 2 is slightly better", 1),
        ("therefore,\nAnswer 2 is the better one", 1),
        ("Answer 1 is better", None),
        ("Overall Judgment - both are equally good", None),
        ("Overall Judgment - Answer 3 is better", None),
        ("", None),
    ],
)
def test_numbered_verdict(text, choice):
    assert NumberedVerdict().parse(text) == choice


@pytest.mark.parametrize(
    ("text", "choice"), [("so [[A]]", 0), ("so [[B]]", 1), ("[[B]] or [[A]]", 0), ("[A]", None), ("", None)]
)
def test_letter_verdict(text, choice):
    assert LetterVerdict().parse(text) == choice


def test_majority_is_of_all_votes():
    majority = LetterVerdict().majority
    assert majority([0, 0, 1]) == 0
    assert majority([1, 1, None]) == 1
    assert majority([0, 0, 1, 1]) is None
    assert majority([0, 0, None, None]) is None
    assert majority([None]) is None


def test_the_judge_reads_all_turns_and_no_python():
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "First?"}]}]
    prompt += [{"role": "assistant", "content": "4"}, {"role": "user", "content": "Sure?"}]
    for form in (NumberedVerdict(), LetterVerdict()):
        assert "\nFirst?\n" in form.prompt(prompt[:1], "A", "B").replace("Question: ", "\n")
        text = form.prompt(prompt, "A <image>", "{B}")
        assert "User: First?\n\nAssistant: 4\n\nUser: Sure?" in text
        assert "A [image]" in text and "{B}" in text and "type" not in text.replace("type of", "")


ROWS = [  # (id, better, responses): the judge of this test prefers the longer response, and says nothing for equal ones
    ("mmmu_1", 0, ["long one", "short"]),
    ("mmmu_2", 1, ["long one", "short"]),
    ("RLHF-V-3", 1, ["short", "long one"]),
    ("wildvision-4", 0, ["equal", "alike"]),
    ("politics-5", 0, ["long one", "short"]),
]


@pytest.fixture
def judged(policy_path, tmp_path):
    """Run the recipe on five pairs with a judge that prefers the longer response."""

    def judge(benchmark, rows):
        asked = []

        class Sampler:
            def __init__(self, *args, **kwargs): ...

            def fingerprint(self, **settings):
                return "0" * 16

            def __call__(self, prompts, images, n, videos=None):
                asked.extend(prompts)
                verdicts = ("Overall Judgment - Answer {} is better.", "[[{}]]")
                answers = []
                for prompt in prompts:
                    numbered = "Answer 1: " in prompt
                    ends = (
                        ("\n\nAnswer 2: ", "\n\n") if numbered else ("\n[End of Assistant A]", "\n[End of Assistant B]")
                    )
                    first = prompt.split("Answer 1: " if numbered else "[Assistant A]\n")[1].split(ends[0])[0]
                    second = prompt.split("\n\nAnswer 2: " if numbered else "[Assistant B]\n")[1].split(ends[1])[0]
                    better = 0 if len(first) > len(second) else 1
                    word = (str(better + 1), "AB"[better])[not numbered]
                    silent = len(first) == len(second)
                    answers.append(["no idea" if silent else verdicts[not numbered].format(word)] * n)
                return answers, None

        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = load_recipe(RECIPE)
        recipe.ResponseSampler = Sampler
        arguments = ["--config", str(ROOT / "recipes/configs/tiny/evaluate_judge.yaml"), "--benchmark", benchmark]
        arguments += ["--data_files", str(tmp_path / "rows.jsonl"), "--model_name_or_path", str(policy_path)]
        arguments += ["--output_dir", str(tmp_path / "out"), "--votes_per_order", "2"]
        recipe.main(*RecipeParser(dataclasses_of(RECIPE), str(RECIPE), ()).parse_args_and_config(arguments))
        lines = [json.loads(line) for line in open(tmp_path / "out/votes.jsonl")]
        return json.loads((tmp_path / "out/results.json").read_text()), lines, asked

    return judge


def test_vl_rewardbench_leaves_pairs_without_a_majority_out(judged):
    rows = [
        {"id": id, "query": "Which?", "response": responses, "human_ranking": [better, 1 - better]}
        for id, better, responses in ROWS
    ]
    results, lines, asked = judged("vl_rewardbench", rows)
    assert [line["votes"] for line in lines] == [[0] * 4, [0] * 4, [1] * 4, [None] * 4, [0] * 4]
    assert len(asked) == 10 and "Answer 1: short\n\nAnswer 2: long one" in asked[5]
    assert (results["n"], results["undecided"], results["votes_without_verdict"]) == (4, 1, 4)
    assert results["overall"] == 0.75
    assert {name: subset["accuracy"] for name, subset in results["subsets"].items()} == {
        "reasoning": 0.5,
        "hallucination": 1.0,
        "general": 1.0,
    }


def test_multimodal_rewardbench_tosses_a_coin(judged):
    rows = [
        {"ID": id, "Category": "vqa", "Text": "Which?", "Better": f"Output{better + 1}"}
        | {"Output1": responses[0], "Output2": responses[1]}
        for id, better, responses in ROWS
    ]
    results, _, _ = judged("multimodal_rewardbench", rows)
    toss = random.Random(123).random() < 0.5  # Output1, which is right
    assert (results["n"], results["undecided"], results["overall"]) == (5, 1, (3 + toss) / 5)


def test_rewardbench_gives_half_a_point(judged):
    rows = [
        {"id": i, "prompt": "Which?", "subset": "donotanswer", "chosen": responses[better]}
        | {"rejected": responses[1 - better]}
        for i, (_, better, responses) in enumerate(ROWS)
    ]
    results, _, _ = judged("rewardbench", rows)
    assert (results["n"], results["ties"], results["sections"]["Safety"]["accuracy"]) == (5, 1, 3.5 / 5)
