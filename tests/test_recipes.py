"""Every recipe, copied with its tiny YAML into an empty folder and run there, each on what the one before wrote."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from datasets import DatasetDict, concatenate_datasets, load_from_disk
from launches import ENVIRONMENT, ROOT, launch, launcher
from peft import PeftModel
from safetensors.torch import load_file
from test_report import Page
from warm_python import warm_bin

from vl_reward import Qwen2_5_VLForSequenceClassification, RewardScorer
from vl_reward.labelling.verifiers import exact
from vl_reward.report import write_report


def run(command, folder, fails=False, **environment):
    environment = ENVIRONMENT | environment
    command = [warm_bin() / "python" if part == sys.executable else part for part in command]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert (result.returncode != 0) == fails, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def run_recipe(name, folder, *arguments, fails=False):
    """Copy the recipe and its YAML into the folder, and nothing else, and run it there."""
    shutil.copy(ROOT / f"recipes/{name}.py", folder)
    shutil.copy(ROOT / f"recipes/configs/tiny/{name}.yaml", folder)
    return run([sys.executable, f"{name}.py", *arguments], folder, fails)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with the embedded world's models and small datasets, and nothing of this repo."""
    folder = tmp_path_factory.mktemp("copied")
    sizes = {"n_questions": 12, "n_policy_questions": 10, "n_text_questions": 4}
    sizes |= {"n_prompts": 24, "n_test": 10, "n_test_prompts": 10}
    arguments = [argument for key, value in sizes.items() for argument in (f"--{key}", str(value))]
    run([sys.executable, "-m", "vl_reward.tiny", *arguments], folder)
    return folder


@pytest.fixture(scope="session")
def stage1(folder):
    return run_recipe("reward_stage1", folder, "--max_steps", "2", "--logging_steps", "1")


@pytest.fixture(scope="session")
def stage2(folder, stage1):
    return run_recipe("reward_stage2", folder, "--max_steps", "2")


@pytest.fixture(scope="session")
def candidates(folder):
    return run_recipe("sample_responses", folder)


@pytest.fixture(scope="session")
def labels(folder, stage2, candidates):
    return run_recipe("label_preferences", folder, "--min_score_margin", "0")


@pytest.fixture(scope="session")
def mpo(folder, labels):
    return run_recipe("mpo", folder, "--max_steps", "2", "--logging_steps", "1")


def moved(first, second):
    first, second = (load_file(path / "model.safetensors") for path in (first, second))
    assert first.keys() == second.keys()
    return {key for key in first if not first[key].equal(second[key])}


def logs_of(folder, step):
    return json.loads((folder / f"outputs/tiny/{step}/trainer_state.json").read_text())["log_history"]


def test_stage1(folder, stage1):
    assert "No --config given: running reward_stage1.yaml" in stage1.splitlines()[0]
    out = folder / "outputs/tiny/reward_stage1"
    assert json.loads((out / "eval_results.json").read_text())["eval_n_pairs"] == sum(
        len(row["images"]) > 0 for row in load_from_disk(folder / "outputs/tiny/preferences")["test"]
    )
    weights, base = load_file(out / "model.safetensors"), load_file(folder / "outputs/tiny/base/model.safetensors")
    # The base is in the hub's layout, which is what its users have.
    assert weights["model.visual.blocks.0.mlp.up_proj.weight"].equal(base["visual.blocks.0.mlp.up_proj.weight"])
    assert not weights["model.visual.merger.mlp.0.weight"].equal(base["visual.merger.mlp.0.weight"])
    name = "layers.0.mlp.up_proj.weight"
    assert not weights[f"model.language_model.{name}"].equal(base[f"model.{name}"])


def test_sharing_prefixes_is_on_and_changes_nothing(folder, stage1, tmp_path):
    arguments = ["--max_steps", "2", "--output_dir", str(tmp_path / "plain"), "--share_prefixes"]
    run_recipe("reward_stage1", folder, *arguments, "false")
    plain = load_file(tmp_path / "plain/model.safetensors")
    shared = load_file(folder / "outputs/tiny/reward_stage1/model.safetensors")
    for name, weight in plain.items():
        assert torch.allclose(shared[name], weight, atol=1e-4), name
    # Rounding differs, so the batch did go through the shared path.
    assert any(not shared[name].equal(weight) for name, weight in plain.items())


def test_stage2_continues_from_stage1(folder, stage2):
    changed = moved(folder / "outputs/tiny/reward_stage1", folder / "outputs/tiny/reward_stage2")
    assert "score.weight" in changed
    weights, before = (load_file(folder / f"outputs/tiny/reward_stage{n}/model.safetensors") for n in (2, 1))
    assert (weights["score.weight"] - before["score.weight"]).abs().max() < 1e-3  # 2 small steps, not a new head
    out = folder / "outputs/tiny/reward_stage2"
    assert json.loads((out / "eval_results.json").read_text())["eval_n_pairs"] == len(
        load_from_disk(folder / "outputs/tiny/preferences")["test"]
    )


def test_evaluate_reward(folder, stage2):
    run_recipe("evaluate_reward", folder)
    results = json.loads((folder / "outputs/tiny/evaluate_reward/results.json").read_text())
    lines = [json.loads(line) for line in open(folder / "outputs/tiny/evaluate_reward/scores.jsonl")]
    dataset = load_from_disk(folder / "outputs/tiny/preferences")["test"]
    assert [line["row"] for line in lines] == list(range(len(dataset))) and results["n"] == len(dataset)
    assert results["overall"] == sum(line["scores"][0] > line["scores"][1] for line in lines) / len(lines)
    assert sum(subset["n"] for subset in results["subsets"].values()) == len(dataset)
    for line, images in zip(lines, dataset["images"], strict=True):
        assert (line["blank_scores"] == pytest.approx(line["scores"], abs=1e-5)) == (len(images) == 0)
    assert (
        results["overall"]
        == json.loads((folder / "outputs/tiny/reward_stage2/eval_results.json").read_text())["eval_accuracy"]
    )


def test_own_pictures_and_a_jsonl_are_trained_on_scored_and_preferred(folder, tmp_path):
    """A file as a person writes it, image paths relative to it, goes into stage 1, its evaluation, and MPO."""
    pairs = load_from_disk(folder / "outputs/tiny/preferences")["train"].select(range(12))
    rows = []
    for number, pair in enumerate(pairs):
        names = [f"pictures/{number}_{place}.png" for place in range(len(pair["images"]))]
        for name, image in zip(names, pair["images"], strict=True):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            image.save(tmp_path / name)
        sides = {side: pair[side][0]["content"] for side in ("prompt", "chosen", "rejected")}
        rows.append({"id": f"own {number}", "images": names, **sides})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["--dataset_name", str(tmp_path / "pairs.jsonl"), "--output_dir"]
    small = ["--max_steps", "2", "--per_device_train_batch_size", "4"]
    said = run_recipe("reward_stage1", folder, *own, str(tmp_path / "stage1"), *small)
    assert "pairs.jsonl has no split test: " in said and "Reward model saved" in said
    model = ["--model_name_or_path", str(tmp_path / "stage1")]
    run_recipe("evaluate_reward", folder, *model, *own, str(tmp_path / "evaluated"))
    lines = [json.loads(line) for line in open(tmp_path / "evaluated/scores.jsonl")]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    with_image = [bool(row["images"]) for row in rows]
    assert [line["blank_scores"] != pytest.approx(line["scores"], abs=1e-5) for line in lines] == with_image
    assert "Policy saved" in run_recipe("mpo", folder, *own, str(tmp_path / "mpo"), *small)


def test_evaluate_judge(folder):
    run_recipe("evaluate_judge", folder, "--max_rows", "6")
    out = folder / "outputs/tiny/evaluate_judge"
    results = json.loads((out / "results.json").read_text())
    lines = [json.loads(line) for line in open(out / "votes.jsonl")]
    assert results["n"] == 6 and [len(line["judgements"]) for line in lines] == [2] * 6
    assert results["votes_without_verdict"] == sum(line["votes"].count(None) for line in lines)


def test_sample_responses(folder, candidates):
    dataset = load_from_disk(folder / "outputs/tiny/sample_responses/candidates")
    prompts = load_from_disk(folder / "outputs/tiny/prompts")["train"]
    assert dataset["id"][:] == prompts["id"][:]
    assert all(len(row) == 8 for row in dataset["responses"])
    assert any(len(set(row)) > 1 for row in dataset["responses"])
    report = json.loads((folder / "outputs/tiny/sample_responses/sampling.json").read_text())
    assert json.loads(dataset.info.description) == report  # recorded in the dataset
    texts = [text for row in dataset["responses"] for text in row]
    assert report["duplicate_responses"] == 1 - sum(len(set(row)) for row in dataset["responses"]) / len(texts)
    assert (report["temperature"], report["top_p"], report["top_k"], report["repetition_penalty"]) == (1, 1, 0, 1)


def test_label_preferences(folder, labels):
    out = folder / "outputs/tiny/label_preferences"
    dataset = load_from_disk(folder / "outputs/tiny/sample_responses/candidates")
    pairs, report = load_from_disk(out / "preferences"), json.loads((out / "labels.json").read_text())
    made = {}
    for pair in pairs:
        made.setdefault(pair["id"], []).append(pair)
    assert report["pairs"] == len(pairs) > report["labelled"] == len(made) > 0
    assert report["labelled"] + sum(report["prompts_without_pairs"].values()) == len(dataset)
    assert report["prompts"] == len(dataset) and max(map(len, made.values())) == report["settings"]["max_pairs"] == 3
    for row in dataset:
        assert all(pair["images"][0].size == row["images"][0].size for pair in made.get(row["id"], []))


def test_dropout_negatives(folder, candidates):
    run_recipe("dropout_negatives", folder)
    out = folder / "outputs/tiny/dropout_negatives"
    pairs, report = load_from_disk(out / "preferences"), json.loads((out / "negatives.json").read_text())
    sampled = {row["id"]: row for row in load_from_disk(folder / "outputs/tiny/sample_responses/candidates")}
    reasons = ("no image or video, or no finished response", "the continuation is cut off")
    reasons += ("the same without the images",)
    assert report["pairs"] == len(pairs) > 0
    assert sum(report.get(reason, 0) for reason in reasons) + len(pairs) == report["prompts"] == len(sampled)
    for row in pairs:
        chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))
        assert chosen in sampled[row["id"]]["responses"] and rejected != chosen
        half = chosen.split()[: len(chosen.split()) // 2]
        assert rejected.split()[: len(half) - 1] == half[:-1] and len(row["images"]) > 0
        assert rejected.startswith(" ".join(half))


def test_mpo(folder, mpo):
    policy = load_file(folder / "outputs/tiny/policy/model.safetensors")
    trained = load_file(folder / "outputs/tiny/mpo/model.safetensors")
    assert not trained["lm_head.weight"].equal(policy["lm_head.weight"])


def test_the_report_draws_the_losses_that_trainings_log(folder, stage1, mpo, tmp_path):
    """No checkpoint is saved here: the recipe itself leaves its log, and its numbers are those of the page."""
    page = Page(write_report([folder / "outputs/tiny"], tmp_path / "report.html"))
    for step in ("reward_stage1", "mpo"):
        losses = [log["loss"] for log in logs_of(folder, step) if "loss" in log]
        shown = page.values[f"curves_{step}"]
        assert len(losses) == 2 and shown[:2] == [1, losses[0]] and losses[1] in shown
        assert f"{step}: loss" in page.texts
    (evaluated,) = [log["eval_loss"] for log in logs_of(folder, "reward_stage1") if "eval_loss" in log]
    assert evaluated in page.values["curves_reward_stage1"]


def test_grpo(folder, stage2):
    """The reward model is one of TRL's reward functions: it scores the policy's samples, with their images."""
    settings = ["--max_steps", "2", "--logging_steps", "1", "--save_strategy", "steps", "--save_steps", "2"]
    run_recipe("grpo", folder, *settings, "--per_device_train_batch_size", "16")
    history = json.loads((folder / "outputs/tiny/grpo/checkpoint-2/trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "loss" in entry]
    assert len(steps) == 2
    assert all(entry["rewards/reward_model/mean"] == entry["reward"] != 0 for entry in steps)
    assert all(entry["grad_norm"] > 0 for entry in steps)
    assert logs_of(folder, "grpo")[: len(history)] == history
    trained = load_file(folder / "outputs/tiny/grpo/model.safetensors")
    policy = load_file(folder / "outputs/tiny/policy/model.safetensors")
    assert not trained["lm_head.weight"].equal(policy["lm_head.weight"])
    name = "visual.blocks.0.mlp.up_proj.weight"
    assert trained[f"model.{name}"].equal(policy[name])  # frozen


def test_evaluate_policy(folder, mpo):
    run_recipe("evaluate_policy", folder, "--model_name_or_path", "outputs/tiny/mpo")
    out = folder / "outputs/tiny/evaluate_policy"
    results = json.loads((out / "results.json").read_text())
    lines = [json.loads(line) for line in open(out / "responses.jsonl")]
    answers = load_from_disk(folder / "outputs/tiny/prompts")["test"]["answer"][:]
    right = [line["greedy"].endswith(f"Answer: {answer}") for line, answer in zip(lines, answers, strict=True)]
    assert results["greedy_accuracy"] == sum(right) / len(answers)
    read = [exact(line["greedy"], answer) for line, answer in zip(lines, answers, strict=True)]
    assert results["unreadable_responses"] == read.count(None)
    assert results["pass_at_n"] == sum(any(line["is_correct"]) for line in lines) / len(answers)
    assert results["pass_at_n"] >= results["best_of_n_accuracy"]
    assert results["pass_at_n"] >= results["mean_at_n"]


@pytest.mark.parametrize(
    ("recipe", "missing"),
    [
        ("reward_stage1", "python -m vl_reward.tiny"),
        ("reward_stage2", "accelerate launch recipes/reward_stage1.py"),
        ("mpo", "python -m vl_reward.tiny"),
        ("label_preferences", "accelerate launch recipes/reward_stage2.py"),
    ],
)
def test_missing_predecessor_is_named(tmp_path, recipe, missing):
    """Run from the repo's own recipes, in a folder without outputs."""
    output = run([sys.executable, str(ROOT / f"recipes/{recipe}.py")], tmp_path, fails=True)
    assert output.splitlines()[0].startswith("No --config given: running ")
    assert f"Make it first: {missing}" in output


def lengthen(row):
    """Two responses of 350 words, which have next to nothing in common."""
    for number, side in enumerate(("chosen", "rejected")):
        text = " ".join(f"I see {i * (number + 3) % 10}" for i in range(117))
        row[side] = [{"role": "assistant", "content": f"{text}. Answer: {number}"}]
    return row


@pytest.mark.parametrize("config", ["deepspeed_zero2", "deepspeed_zero3", "cpu_2_processes", "fsdp2"])
def test_stage2_on_2_processes(folder, stage1, config, tmp_path):
    """Mixed batches: one process has an image and a prompt to share, the other text without either."""
    for name in ("reward_stage2.py", "configs/tiny/reward_stage2.yaml"):
        shutil.copy(ROOT / "recipes" / name, tmp_path)
    dataset = load_from_disk(folder / "outputs/tiny/preferences")
    with_images = [len(images) > 0 for images in dataset["train"]["images"][:]]
    text, image = ([i for i, has in enumerate(with_images) if has == wanted] for wanted in (False, True))
    long = dataset["train"].select(text[:3]).map(lengthen, load_from_cache_file=False)
    pairs = concatenate_datasets([dataset["train"].select(image[:3]), long])
    dataset["train"] = pairs.select([3, 0, 1, 4, 5, 2])
    dataset.save_to_disk(tmp_path / "mixed")
    run(
        [*launcher(config, tmp_path), str(tmp_path / "reward_stage2.py"), "--use_cpu", "true"]
        + ["--dataset_name", str(tmp_path / "mixed"), "--output_dir", str(tmp_path / "out"), "--max_length", "2048"]
        + ["--max_steps", "3", "--per_device_train_batch_size", "1", "--logging_steps", "1", "--save_strategy", "steps"]
        + ["--dataloader_num_workers", "0", "--train_sampling_strategy", "sequential"],
        folder,
    )
    state = json.loads((tmp_path / "out/checkpoint-3/trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 3
    reference = folder / "losses_on_2_processes.json"  # of whichever configuration ran first
    if reference.exists():
        assert losses == pytest.approx(json.loads(reference.read_text()), rel=1e-4)
    reference.write_text(json.dumps(losses))
    weights = load_file(tmp_path / "out/model.safetensors")
    assert all(value.numel() and value.isfinite().all() for value in weights.values())
    assert len(moved(tmp_path / "out", folder / "outputs/tiny/reward_stage1")) > 30
    metrics = json.loads((tmp_path / "out/eval_results.json").read_text())
    assert metrics["eval_n_pairs"] == len(load_from_disk(folder / "outputs/tiny/preferences")["test"])


def test_sampling_and_labelling_on_2_processes(folder, stage2, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launch += [str(ROOT / "accelerate_configs/cpu_2_processes.yaml")]
    for number, command in (("two", launch), ("one", [sys.executable])):
        out = tmp_path / number
        for name, arguments in (
            ("sample_responses", ["--shard_size", "7"]),
            (
                "label_preferences",
                ["--dataset_name", str(out / "sample_responses/candidates"), "--min_score_margin", "0"],
            ),
        ):
            run(command + [str(ROOT / f"recipes/{name}.py"), "--output_dir", str(out / name), *arguments], folder)
    candidates = [load_from_disk(tmp_path / number / "sample_responses/candidates") for number in ("one", "two")]
    assert candidates[0]["id"][:] == load_from_disk(folder / "outputs/tiny/prompts")["train"]["id"][:]
    assert candidates[0].remove_columns("images")[:] == candidates[1].remove_columns("images")[:]
    scores = [(tmp_path / number / "label_preferences/scores.jsonl").read_bytes() for number in ("one", "two")]
    assert scores[0] == scores[1] and len(scores[0].splitlines()) == len(candidates[0])


@pytest.mark.parametrize("config", ["deepspeed_zero2", "deepspeed_zero3", "fsdp2"])
def test_lora_on_2_processes_leaves_a_plain_model_and_the_adapter(folder, config, tmp_path):
    """What is loaded without PEFT scores as the base with the adapter does, and was trained."""
    command = [
        *launcher(config, tmp_path),
        str(ROOT / "recipes/reward_stage1.py"),
        "--use_cpu",
        "true",
        "--max_steps",
        "2",
    ]
    command += ["--per_device_train_batch_size", "2", "--dataloader_num_workers", "0", "--use_peft", "true"]
    command += ["--learning_rate", "0.01", "--warmup_steps", "0", "--output_dir", str(tmp_path / "out")]
    assert "Reward model saved" in run(command, folder)
    base = folder / "outputs/tiny/base"
    merged = RewardScorer.from_pretrained(tmp_path / "out", dtype="float32")
    model = Qwen2_5_VLForSequenceClassification.from_pretrained(base, dtype="float32")
    adapted = PeftModel.from_pretrained(model, tmp_path / "out/adapter")
    adapter = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in adapter.values())
    assert {name.split(".")[-2] for name in adapter if "lora_" not in name} >= {"score"}
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    assert all(".language_model.layers." in name for name in adapter if "lora_" in name)
    rows = load_from_disk(folder / "outputs/tiny/preferences")["test"].select(range(6))
    asked = [rows["prompt"][:], [row[0]["content"] for row in rows["chosen"]], rows["images"][:]]
    expected = RewardScorer(adapted, merged.processor)(*asked)
    assert merged(*asked) == pytest.approx(expected, abs=1e-5)


def test_lora_beside_bfloat16_weights_under_fsdp2(folder, labels, tmp_path):
    """As on GPUs: the base in bfloat16, which no step changes, and the adapter and its gradients in float32."""
    settings = {"num_processes": 2, "mixed_precision": "bf16"}
    command = [*launch("fsdp2", tmp_path, settings), str(ROOT / "bench/fsdp_on_cpu.py")]
    command += [str(ROOT / "recipes/mpo.py"), "--bf16", "true", "--dtype", "bfloat16", "--use_peft", "true"]
    command += ["--use_cpu", "true", "--max_steps", "2", "--warmup_steps", "0", "--learning_rate", "0.01"]
    command += ["--per_device_train_batch_size", "2", "--dataloader_num_workers", "0"]
    assert "saved to" in run([*command, "--output_dir", str(tmp_path / "out")], folder)
    adapter = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    trained = {name: tensor for name, tensor in adapter.items() if "lora_B" in name}
    assert len(trained) > 10 and all(tensor.dtype == torch.float32 for tensor in trained.values())
    assert all(tensor.any() and tensor.isfinite().all() for tensor in trained.values())


@pytest.mark.parametrize("config", ["deepspeed_zero3", "fsdp2"])
def test_sharded_grpo_on_prompts_with_and_without_images(folder, stage2, config, tmp_path):
    """In each step one process samples from an image, the other from text. The reward model is whole on both."""
    image = load_from_disk(folder / "outputs/tiny/prompts")["train"].select(range(3)).remove_columns("answer")
    pairs = load_from_disk(folder / "outputs/tiny/preferences")["train"]
    text = pairs.select([i for i, images in enumerate(pairs["images"][:]) if not images][:3])
    text = text.select_columns(image.column_names).cast(image.features)
    mixed = concatenate_datasets([image, text]).select([0, 3, 4, 1, 2, 5])
    DatasetDict({"train": mixed}).save_to_disk(tmp_path / "mixed")
    command = [*launcher(config, tmp_path), str(ROOT / "recipes/grpo.py"), "--use_cpu", "true"]
    command += ["--dataset_name", str(tmp_path / "mixed"), "--output_dir", str(tmp_path / "out"), "--max_steps", "3"]
    command += ["--per_device_train_batch_size", "8", "--shuffle_dataset", "false", "--logging_steps", "1"]
    said = run([*command, "--save_strategy", "steps", "--save_steps", "3"], folder)
    assert "Policy saved" in said
    state = json.loads((tmp_path / "out/checkpoint-3/trainer_state.json").read_text())
    rewards = [entry["reward"] for entry in state["log_history"] if "reward" in entry]
    assert len(rewards) == 3 and len(set(rewards)) == 3
    assert len(moved_policy(folder / "outputs/tiny/policy", tmp_path / "out")) > 30


def moved_policy(hub, native):
    """The decoder's weights that training moved, from the hub's layout to transformers' own."""
    hub, native = (load_file(path / "model.safetensors") for path in (hub, native))
    names = {
        name: name.replace("model.", "model.language_model.", 1) for name in hub if name.startswith("model.layers.")
    }
    return {name for name, other in names.items() if not hub[name].equal(native[other])}


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("reward_stage1", ["--load_in_4bit", "true", "--bf16", "true", "--use_cpu", "true"]),
        ("mpo", ["--use_dora", "true"]),
    ],
    ids=["reward model, QLoRA", "policy, DoRA"],
)
def test_variants_of_lora_leave_a_plain_model(folder, labels, recipe, flags, tmp_path):
    """`use_peft` is enough: what is adapted and what is trained in full are the recipe's defaults."""
    settings = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--use_peft", "true"]
    output = run_recipe(recipe, folder, *settings, *flags, "--output_dir", str(tmp_path))
    assert "saved to" in output
    kept = load_file(tmp_path / "adapter/adapter_model.safetensors")
    in_full = {"score", "merger"} if recipe == "reward_stage1" else set()
    assert {name for name in in_full if any(name in key for key in kept)} == in_full
    assert all(".language_model.layers." in key for key in kept if "lora_" in key)
    model = load_file(tmp_path / "model.safetensors")
    assert (
        not any("lora" in name or "base_model" in name for name in model)
        and "model.visual.merger.mlp.0.weight" in model
    )


def test_mpo_on_2_processes(folder, labels, tmp_path):
    """
    Two processes with a batch of 2 each give the losses, the reward shift, the gradients and the accuracy of one with a
    batch of 4; and so do two under ZeRO-3 whose reference was computed ahead, and two under FSDP2.
    """
    prompts = load_from_disk(folder / "outputs/tiny/prompts")["test"]
    uneven = prompts.select([i % len(prompts) for i in range(129)])  # 64 at a time: two batches, and one
    DatasetDict({"test": uneven}).save_to_disk(tmp_path / "uneven")
    common = ["--max_steps", "3", "--logging_steps", "1", "--save_strategy", "steps", "--dataloader_num_workers", "0"]
    common += ["--train_sampling_strategy", "sequential"]  # random orders differ with the number of processes
    common += ["--verifiable_dataset", str(tmp_path / "uneven"), "--max_new_tokens", "24", "--eval_strategy", "steps"]
    common += ["--eval_steps", "3", "--metric_for_best_model", "greedy_accuracy"]
    # In each step one process has pairs with images, the other one without.
    image = load_from_disk(folder / "outputs/tiny/label_preferences/preferences").select(range(6))
    image = image.select_columns(["id", "prompt", "images", "chosen", "rejected"])
    pairs = load_from_disk(folder / "outputs/tiny/preferences")["train"]
    text = pairs.select([i for i, images in enumerate(pairs["images"][:]) if not images][:4])
    text = concatenate_datasets([text, text]).select(range(6)).select_columns(image.column_names).cast(image.features)
    order = [0, 1, 6, 7, 8, 9, 2, 3, 10, 11, 4, 5]
    concatenate_datasets([image, text]).select(order).save_to_disk(tmp_path / "mixed")
    common += ["--dataset_name", str(tmp_path / "mixed")]
    two = ["--use_cpu", "true", "--per_device_train_batch_size", "2", *common, "--output_dir"]
    mpo = str(ROOT / "recipes/mpo.py")
    run([*launcher("cpu_2_processes", tmp_path), mpo, *two, str(tmp_path / "two")], folder)
    alone = [sys.executable, mpo, "--per_device_train_batch_size", "4"]
    run([*alone, "--output_dir", str(tmp_path / "one"), *common], folder)
    ahead = ["--precompute_ref_log_probs", "true", "--share_prefixes", "false"]
    run([*launcher("deepspeed_zero3", tmp_path), mpo, *two, str(tmp_path / "zero3"), *ahead], folder)
    run([*launcher("fsdp2", tmp_path), mpo, *two, str(tmp_path / "fsdp2")], folder)
    kept = [len(path.read_text().splitlines()) for path in (tmp_path / "zero3/ref_log_probs").rglob("*.jsonl")]
    assert kept == [12]

    def history(name, key):
        state = json.loads((tmp_path / name / "checkpoint-3/trainer_state.json").read_text())
        return [entry[key] for entry in state["log_history"] if key in entry]

    names = ("one", "two", "zero3", "fsdp2")
    accuracies = [history(name, "eval_greedy_accuracy") for name in names]
    assert accuracies == accuracies[:1] * 4 and 0 < accuracies[0][0] < 1
    # A process averages the loss of its own rows; what is logged is gathered, so it is that of all four.
    for key in ("sft_loss", "rewards/margins", "reward_shift", "grad_norm"):
        one, *others = (history(name, key) for name in names)
        assert others == [pytest.approx(one, abs=2e-4)] * 3, key
    totals = [json.loads((tmp_path / name / "checkpoint-3/reward_shift.json").read_text())["total"] for name in names]
    assert totals[1:] == pytest.approx([totals[0]] * 3, abs=2e-4) and totals[0] != 0
