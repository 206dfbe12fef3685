"""Exports: each layout from each, shard by shard, and what is refused."""

import json
import shutil
import sys

import pytest
import torch
from launches import ROOT
from safetensors.torch import load_file, save_file
from test_configs import load_recipe
from test_recipes import run
from transformers import AutoModelForImageTextToText, AutoModelForSequenceClassification

from vl_reward import RewardScorer
from vl_reward.inference.probes import Probes
from vl_reward.models.exported_checkpoint import ExportedCheckpoint


BIAS = 0.75


def weights(folder):
    return {
        name: tensor for path in sorted(folder.glob("model*.safetensors")) for name, tensor in load_file(path).items()
    }


@pytest.fixture
def native(reward_model, processor, tmp_path):
    """A checkpoint in several shards."""
    reward_model.save_pretrained(tmp_path / "native", max_shard_size="500kB")
    processor.save_pretrained(tmp_path / "native")
    return tmp_path / "native"


@pytest.fixture
def released(policy_path, tmp_path):
    """A plain model with a value head that has a bias, as Skywork-VL-Reward-7B is laid out."""
    folder = shutil.copytree(policy_path, tmp_path / "released")
    head = {"weight": torch.randn(1, 128, generator=torch.Generator().manual_seed(0)), "bias": torch.tensor([BIAS])}
    save_file({f"v_head.summary.{name}": tensor for name, tensor in head.items()}, folder / "value_head.safetensors")
    return folder


def scores(path, rows):
    columns = [[row[key] for row in rows] for key in ("prompt", "chosen", "images")]
    return RewardScorer.from_pretrained(str(path))(*columns)


def test_a_round_trip_changes_no_weight_and_keeps_the_shards(native, mixed_pairs, tmp_path):
    before, source = scores(native, mixed_pairs[:4]), native
    for format in ("vllm", "value_head", "native"):
        ExportedCheckpoint(str(source), format).write(tmp_path / f"to_{format}")
        source = tmp_path / f"to_{format}"
        # The last bit depends on where a tensor lies in memory; the weights below are equal to the bit.
        assert scores(source, mixed_pairs[:4]) == pytest.approx(before, abs=1e-6)
    files = sorted(path.name for path in native.glob("model-*.safetensors"))
    assert len(files) > 2 and sorted(path.name for path in source.glob("*.safetensors")) == files
    ours, theirs = weights(native), weights(source)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in theirs.values())
    assert all(name in load_file(source / file) for name, file in index["weight_map"].items())


def test_only_a_shard_is_in_memory_at_a_time(native, tmp_path, monkeypatch):
    largest, saved = max(path.stat().st_size for path in native.glob("model-*.safetensors")), []

    def save(shard, path, metadata):
        saved.append(sum(tensor.nbytes for tensor in shard.values()))
        save_file(shard, path, metadata=metadata)

    monkeypatch.setattr("vl_reward.models.exported_checkpoint.save_file", save)
    ExportedCheckpoint(str(native), "vllm").write(tmp_path / "out")
    assert len(saved) > 2 and max(saved) <= largest


def test_vllm_finds_the_head_under_its_name_and_one_label_without_a_sigmoid(native, tmp_path):
    ExportedCheckpoint(str(native), "vllm").write(tmp_path / "out")
    written, given = weights(tmp_path / "out"), weights(native)
    assert torch.equal(written.pop("language_model.score.weight"), given.pop("score.weight"))
    assert written.keys() == given.keys()
    config = json.loads((tmp_path / "out/config.json").read_text())
    for part in (config, config["text_config"]):
        assert (part["id2label"], part["problem_type"]) == ({"0": "LABEL_0"}, "regression")
    assert config["architectures"] == ["Qwen2_5_VLForSequenceClassification"]
    assert (tmp_path / "out/chat_template.jinja").read_text() == (native / "chat_template.jinja").read_text()


def test_a_bias_is_kept_in_each_layout(released, mixed_pairs, tmp_path):
    before = scores(released, mixed_pairs[:4])
    for format in ("vllm", "native", "value_head"):
        ExportedCheckpoint(str(released), format).write(tmp_path / format)
        assert scores(tmp_path / format, mixed_pairs[:4]) == pytest.approx(before, abs=1e-6)
    assert load_file(tmp_path / "vllm/model.safetensors")["language_model.score.bias"].item() == BIAS
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "native")
    assert model.score.bias.item() == BIAS
    assert load_file(tmp_path / "value_head/value_head.safetensors").keys() == {
        "v_head.summary.weight",
        "v_head.summary.bias",
    }
    ours, theirs = weights(released), weights(tmp_path / "value_head")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_value_head_without_a_language_model_head_loads_as_a_plain_model(native, tmp_path):
    ExportedCheckpoint(str(native), "value_head").write(tmp_path / "out")
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


def test_what_is_no_whole_reward_model_is_refused(native, policy_path, tmp_path):
    with pytest.raises(ValueError, match="holds no reward head"):
        ExportedCheckpoint(str(policy_path), "vllm")
    (tmp_path / "empty").mkdir()
    shutil.copy(native / "config.json", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="it is no checkpoint"):
        ExportedCheckpoint(str(tmp_path / "empty"), "vllm")
    (tmp_path / "empty/adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter"):
        ExportedCheckpoint(str(tmp_path / "empty"), "vllm")
    with pytest.raises(ValueError, match="is the source"):
        ExportedCheckpoint(str(native), "vllm").write(native)
    ExportedCheckpoint(str(native), "value_head").write(tmp_path / "twice")
    with pytest.raises(ValueError, match="which would stay beside the export"):
        ExportedCheckpoint(str(native), "native").write(tmp_path / "twice")
    file = sorted(native.glob("model-*.safetensors"))[0]
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if ".score" not in name))
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing, left over or of another shape"):
        ExportedCheckpoint(str(native), "vllm").write(tmp_path / "out")


def test_the_recipe_writes_probes_and_a_card(native, tmp_path):
    (native / "eval_results.json").write_text(json.dumps({"eval_accuracy": 0.9375, "eval_runtime": 1.0}))
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/results.json").write_text(json.dumps({"model": "ours", "overall": 0.731, "n": 1247}))
    recipe = [sys.executable, str(ROOT / "recipes/export_reward.py"), "--model_name_or_path", str(native)]
    run([*recipe, *"--format vllm --output_dir out --results bench".split(), "--datasets", "our pairs"], tmp_path)
    probes = Probes.load(tmp_path / "out")
    expected = Probes.measured_by(RewardScorer.from_pretrained(str(native)), "float32").probes
    for probe, right in zip(probes.probes, expected, strict=True):
        assert probe.pop("score") == pytest.approx(right.pop("score"), abs=1e-5)
        assert probe == right
    assert [len(probe["messages"][0]["content"]) for probe in probes.probes] == [1, 2]
    card = (tmp_path / "out/README.md").read_text()
    for words in (
        "vllm serve out --runner pooling --dtype float32",
        "ends in '<|im_end|>\\n'",
        "- our pairs",
        "eval_accuracy, held-out pairs of the training: 0.9375",
        "- bench: 73.1% of 1,247, by ours",
    ):
        assert words in card


@pytest.mark.parametrize("asked", [False, True])
def test_a_folder_is_uploaded_where_that_is_asked_for_and_nowhere_else(asked, native, tmp_path, monkeypatch):
    recipe, calls = load_recipe(ROOT / "recipes/export_reward.py"), []
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", lambda self, *a, _n=name, **k: calls.append((_n, a, k)))
    given = {"push_to_hub": True, "hub_model_id": "us/reward"} if asked else {}
    recipe.main(recipe.ExportArguments(str(native), output_dir=str(tmp_path / "out"), **given))
    if not asked:
        assert calls == []
        return
    assert [name for name, _, _ in calls] == ["create_repo", "upload_folder"]
    assert calls[0][1:] == (("us/reward",), {"exist_ok": True, "private": True})
    assert calls[1][2] == {"repo_id": "us/reward", "folder_path": tmp_path / "out"}
    assert "vllm serve us/reward" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(ValueError, match="`push_to_hub` needs `hub_model_id`"):
        recipe.ExportArguments(str(native), push_to_hub=True)


def test_of_two_heads_the_model_s_own_is_exported(native, released, mixed_pairs, tmp_path):
    shutil.copy(released / "value_head.safetensors", native)
    ExportedCheckpoint(str(native), "vllm").write(tmp_path / "out")
    expected = scores(native, mixed_pairs[:2])
    assert scores(tmp_path / "out", mixed_pairs[:2]) == pytest.approx(expected, abs=1e-6)
    assert "score.bias" not in " ".join(weights(tmp_path / "out"))
