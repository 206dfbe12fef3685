"""The rehearsal at real shapes, with narrower models: its steps, the layout of its checkpoint, and the kept table."""

import json

import pytest
import torch
from memory import DOCS, fill
from rehearsal import Rehearsal, cut_config
from safetensors.torch import load_file, save_file

from vl_reward.tiny.processor import build_processor


@pytest.fixture
def rehearsal(tmp_path):
    rehearsal = Rehearsal("3b", tmp_path, "float32", 64, narrower=8)
    rehearsal.write()
    return rehearsal


def test_checkpoint_is_as_the_hub_has_it(rehearsal):
    files = sorted(rehearsal.checkpoint.glob("model-*.safetensors"))
    assert len(files) > 1
    index = json.loads((rehearsal.checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    weights = {name: weight for file in files for name, weight in load_file(file).items()}
    assert weights.keys() == index.keys() and {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert {name.split(".")[0] for name in weights} == {"visual", "model"}  # the 3B model's embedding is its head
    config = json.loads((rehearsal.checkpoint / "config.json").read_text())
    assert config["image_token_id"] == build_processor().image_token_id
    assert rehearsal.load() == {"compared": len(weights)}


def test_a_backbone_that_is_not_loaded_ends_the_rehearsal(rehearsal):
    file = next(rehearsal.checkpoint.glob("model-*.safetensors"))
    weights = load_file(file)
    name = next(name for name in weights if name.startswith("model.layers"))
    renamed = {("model.other" if key == name else key): weight for key, weight in weights.items()}
    save_file(renamed, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not fit"):
        rehearsal.load()


def test_a_resumed_step_goes_on_from_the_checkpoint(rehearsal):
    steps = rehearsal.steps()
    folder = rehearsal.folder / "stage1"
    assert steps["stage 1"]()["measured"] > 0
    first = load_file(folder / "checkpoint-1/model.safetensors")
    steps["stage 1, resumed"]()
    state = json.loads((folder / "checkpoint-2/trainer_state.json").read_text())
    assert state["global_step"] == 2 and not (folder / "checkpoint-1").exists()
    second = load_file(folder / "model.safetensors")
    base = {name: weight for file in rehearsal.checkpoint.glob("model-*") for name, weight in load_file(file).items()}
    name = "layers.0.mlp.up_proj.weight"
    weights = base[f"model.{name}"].float(), *(step[f"model.language_model.{name}"] for step in (first, second))
    moved = [(after - before).abs().max().item() for before, after in zip(weights, weights[1:], strict=False)]
    assert min(moved) > 0
    rehearsal.folder.joinpath("stage1").rename(rehearsal.folder / "stage2")
    assert rehearsal.score()["scores"][0] != 0


def test_real_widths_are_kept():
    tokenizer = build_processor().tokenizer
    for size, width, vocabulary, tied in (("3b", 2048, 151936, True), ("7b", 3584, 152064, False)):
        config = cut_config(size, 1, tokenizer)
        text, vision = config.text_config, config.vision_config
        assert (text.hidden_size, text.vocab_size, config.tie_word_embeddings) == (width, vocabulary, tied)
        assert (text.num_hidden_layers, vision.depth, vision.fullatt_block_indexes) == (2, 2, [1])
        assert vision.hidden_size == 1280 and text.rope_parameters["mrope_section"] == [16, 24, 24]


def test_kept_rehearsal_went_through_all_steps():
    rows = json.loads((DOCS / "rehearsal.json").read_text())["rows"]
    steps = Rehearsal("3b", DOCS, "bfloat16", 1280).steps()
    for size in {row["model"] for row in rows}:
        assert [row["step"] for row in rows if row["model"] == size] == [*steps]
    trained = [row for row in rows if "estimated" in row]
    assert len(trained) >= 5 and all(0.75 < row["estimated"] / row["measured"] < 1.25 for row in trained)
    assert "rehearsal" in fill("<!-- rehearsal -->\n\n<!-- end of rehearsal -->")
