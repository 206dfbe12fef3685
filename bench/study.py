"""
What makes the policy of the embedded world better, and for how long: losses, kinds of pairs, rounds, steps and N.

```bash
make demo SEED=0 OUT=outputs/tiny
python bench/study.py --demo_dir outputs/tiny --seed 0
```

Starts from what the demo left. Each step is a recipe run as a user would; a step that is done is not run again. Writes
`study.json`. `python bench/study_report.py` makes one table and plots of several seeds.
"""

import argparse
import json
import math
import shutil
import statistics
import sys
from pathlib import Path

from datasets import load_from_disk

from study_report import table
from vl_reward.labelling.verifiers import exact
from vl_reward.tiny.demo import run_steps


# The loss's name, its terms, and their weights.
LOSSES = {
    "sft": (["sft"], [1.0]),
    "dpo": (["sigmoid"], [1.0]),
    "dpo_sft": (["sigmoid", "sft"], [1.0, 1.0]),
    "bco_sft": (["bco_pair", "sft"], [1.0, 1.0]),
    "mpo_without_shift": (["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]),
}
PAIRS = {"random": "random_pairs", "verifier": "correct_vs_incorrect"}
ROUNDS = (2, 3, 4)  # a fifth is refused for one seed: the policy gives the same response eight times over
EPOCHS, CHECKPOINTS = 4, 8  # of the long run that shows reward against accuracy
N = 32


def command(recipe: str, **arguments) -> list[str]:
    """A recipe with its tiny config."""
    words = [sys.executable, f"recipes/{recipe}.py", "--config", f"recipes/configs/tiny/{recipe}.yaml"]
    for key, value in arguments.items():
        words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return words


def steps(demo: Path, out: Path, seed: int) -> dict[str, list[str]]:
    """The command of each step, in order. All trainings take the steps that the demo's MPO took."""
    pairs, reward_model = demo / "label_preferences/preferences", demo / "reward_stage2"
    batch = 32
    max_steps = -(-len(load_from_disk(pairs)) // batch)
    commands = {}

    def train(name, model, dataset, **arguments):
        common = {"model_name_or_path": model, "dataset_name": dataset, "seed": seed, "output_dir": out / name}
        commands[name] = command("mpo", **{**common, "max_steps": max_steps, **arguments})

    def evaluate(name, model, n=0):
        common = {"model_name_or_path": model, "dataset_name": demo / "prompts", "reward_model": reward_model}
        arguments = {**common, "num_generations": n, "seed": seed, "output_dir": out / f"evaluate_{name}"}
        commands[f"evaluate_{name}"] = command("evaluate_policy", **arguments)

    def label(name, candidates, **arguments):
        common = {"model_name_or_path": reward_model, "dataset_name": candidates, "output_dir": out / name}
        commands[name] = command("label_preferences", **common, **arguments)

    evaluate("base", demo / "policy", N)
    evaluate("mpo", demo / "mpo")
    for name, (terms, weights) in LOSSES.items():
        shift = {"use_reward_shift": False} if name == "mpo_without_shift" else {}
        train(name, demo / "policy", pairs, loss_type=terms, loss_weights=weights, **shift)
        evaluate(name, out / name)
    for name, rule in PAIRS.items():
        label(f"label_{name}", demo / "sample_responses/candidates", rules=[rule])
        train(f"mpo_{name}_pairs", demo / "policy", out / f"label_{name}/preferences")
        evaluate(f"mpo_{name}_pairs", out / f"mpo_{name}_pairs")
    policy = demo / "mpo"
    for number in ROUNDS:
        sampling = {"model_name_or_path": policy, "dataset_name": demo / "prompts", "seed": seed + 1000 * number}
        commands[f"sample_{number}"] = command("sample_responses", **sampling, output_dir=out / f"sample_{number}")
        label(f"label_{number}", out / f"sample_{number}/candidates")
        train(f"round_{number}", policy, out / f"label_{number}/preferences", max_steps=-1)
        policy = out / f"round_{number}"
        evaluate(f"round_{number}", policy)
    every = EPOCHS * max_steps // CHECKPOINTS
    saving = {"max_steps": EPOCHS * max_steps, "save_strategy": "steps", "save_steps": every, "save_only_model": True}
    train("long", demo / "policy", pairs, **saving)
    for step in range(every, EPOCHS * max_steps + 1, every):
        evaluate(f"long_{step}", out / f"long/checkpoint-{step}")
    return commands


def greedy_correct(evaluation: Path, answers: dict[str, str]) -> list[bool]:
    """Whether each greedy response is correct."""
    lines = [json.loads(line) for line in open(evaluation / "responses.jsonl")]
    assert [line["id"] for line in lines] == list(answers), "policies are compared prompt by prompt"
    return [bool(exact(line["greedy"], answers[line["id"]])) for line in lines]


def collect(demo: Path, out: Path, seed: int) -> dict:
    """
    Accuracy, its standard error, length, reward, and gain over the base on the same prompts of each policy, the base's
    best of N for every N, and the fraction of prompts to which each round's samples are all equal.
    """
    prompts = load_from_disk(demo / "prompts")["test"]
    answers = dict(zip(prompts["id"], prompts["answer"], strict=True))
    base = greedy_correct(out / "evaluate_base", answers)
    results = {}
    for path in sorted(out.glob("evaluate_*/results.json")):
        measures = json.loads(path.read_text())
        keys = ("greedy_accuracy", "greedy_standard_error", "greedy_characters", "greedy_reward")
        gains = [int(new) - int(old) for new, old in zip(greedy_correct(path.parent, answers), base, strict=True)]
        results[path.parent.name.removeprefix("evaluate_")] = {
            **{key: measures[key] for key in keys},
            "gain": statistics.mean(gains),
            "gain_standard_error": statistics.pstdev(gains) / math.sqrt(len(gains)),
        }
    lines = [json.loads(line) for line in open(out / "evaluate_base/responses.jsonl")]
    # An empty response has no score, and is the worst there is.
    ranked = [[-math.inf if score is None else score for score in line["scores"]] for line in lines]
    curve = []
    for n in range(1, N + 1):
        best = [line["is_correct"][ranks.index(max(ranks[:n]))] for line, ranks in zip(lines, ranked, strict=True)]
        passed = [any(line["is_correct"][:n]) for line in lines]
        curve.append({"n": n, "best_of_n": sum(best) / len(lines), "pass_at_n": sum(passed) / len(lines)})
    reports = {"mpo": demo / "label_preferences"} | {f"mpo_{name}_pairs": out / f"label_{name}" for name in PAIRS}
    pairs = {name: json.loads((path / "labels.json").read_text())["pairs"] for name, path in reports.items()}
    samplings = {1: demo / "sample_responses"} | {number: out / f"sample_{number}" for number in ROUNDS}
    equal = {
        number: json.loads((path / "sampling.json").read_text())["prompts_with_all_responses_equal"]
        for number, path in samplings.items()
    }
    return {"seed": seed, "policies": results, "best_of_n": curve, "pairs": pairs, "all_equal_in_round": equal}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo_dir", type=Path, default=Path("outputs/tiny"), help="`make demo` wrote this folder.")
    parser.add_argument("--seed", type=int, default=0, help="It seeds sampling and training.")
    args = parser.parse_args()

    out = args.demo_dir / "study"
    record = out / "steps.json"
    done = json.loads(record.read_text()) if record.exists() else {"seed": args.seed, "seconds": {}}
    if done["seed"] != args.seed:
        sys.exit(f"{out} holds a study with seed {done['seed']}. Remove it, or give that seed.")
    for name in PAIRS:  # the same responses by the same model: their scores are there
        shutil.copytree(args.demo_dir / "label_preferences/scores", out / f"label_{name}/scores", dirs_exist_ok=True)
    run_steps(steps(args.demo_dir, out, args.seed), record, done)
    study = collect(args.demo_dir, out, args.seed)
    (out / "study.json").write_text(json.dumps(study, indent=1) + "\n")
    print(f"{table([study])}\nWritten to {out / 'study.json'}")


if __name__ == "__main__":
    main()
