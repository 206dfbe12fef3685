"""What `--estimate true` says, against what a training run takes, and against counts that are known."""

import json
import re
import subprocess
import sys

import pytest
import torch
import yaml
from memory import CASES, DOCS, ROOT, Case, fill, load_recipe
from safetensors.torch import load_file
from test_recipes import ENVIRONMENT
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForSequenceClassification
from trl import DPOConfig, GRPOConfig, RewardConfig

from vl_reward import VisionModelConfig, VisionRewardModelConfig
from vl_reward.memory.estimate import GIB, MemoryEstimate
from vl_reward.memory.live_tensors import LiveTensors
from vl_reward.memory.sharding import Sharding


FROZEN = r"model\.visual\.(?!merger)"
FREEZE = load_recipe(ROOT / "recipes/reward_stage1.py")[0].freeze


def estimate(policy_path, config_class=RewardConfig, sharding=None, on_gpu=False, model=None, **options):
    arguments = {"output_dir": "unused", "use_cpu": True, "bf16": False, "report_to": "none", "max_length": 256}
    known = {name: options.pop(name) for name in [*options] if name in VisionModelConfig.__dataclass_fields__}
    if config_class is GRPOConfig:
        del arguments["max_length"]
    is_reward = config_class is RewardConfig
    model_args = (VisionRewardModelConfig if is_reward else VisionModelConfig)(
        model_name_or_path=str(model or policy_path), **known
    )
    model_class = AutoModelForSequenceClassification if is_reward else AutoModelForImageTextToText
    return MemoryEstimate(
        model_class,
        config_class(**arguments | options),
        model_args,
        FREEZE if is_reward else None,
        sharding=sharding or Sharding(),
        on_gpu=on_gpu,
    )


@pytest.mark.parametrize(
    "case",
    [
        Case("reward", "reward_stage1", layers=4, response=384),
        Case("LoRA", "mpo", {"use_peft": True, "gradient_checkpointing": True}, layers=4, image_side=6, response=320),
    ],
    ids=lambda case: case.name,
)
def test_estimate_is_within_a_quarter_of_what_a_run_takes(case, tmp_path):
    row = case.run(tmp_path)
    assert row["measured"] > 0.5
    assert 0.75 < row["estimated"] / row["measured"] < 1.25, row


def test_kept_measurements_are_of_all_cases_and_within_a_quarter():
    rows = json.loads((DOCS / "measured.json").read_text())
    assert [row["name"] for row in rows] == [case.name for case in CASES]
    for row in rows:
        assert 0.75 < row["estimated"] / row["measured"] < 1.25, row


def test_page_holds_what_the_commands_wrote():
    page = (ROOT / "docs/memory.md").read_text()
    assert fill(page) == page
    assert page.count("fits") > 10


def test_real_models_have_their_number_of_parameters():
    for size, parameters in (("3b", 3_754_622_976), ("7b", 8_292_166_656)):
        path = DOCS / f"qwen2_5_vl_{size}.json"
        weights = estimate(path, DPOConfig, dtype="float32").model.weights
        assert sum(weight.numel for weight in weights) == parameters
        assert {weight.size for weight in weights} == {4}  # though the checkpoint is in bfloat16
        assert AutoConfig.from_pretrained(path).tie_word_embeddings == (size == "3b")


def test_weights_gradients_and_states_are_counted_exactly(policy_path, reward_model):
    """Of the reward model, of which the vision tower is frozen but for the projector."""
    trained = frozen = 0
    for name, weight in reward_model.named_parameters():
        if re.match(FROZEN, name):
            frozen += weight.numel()
        else:
            trained += weight.numel()
    whole = estimate(policy_path)
    assert whole.held.parts() == {"weights": 4 * (trained + frozen), "optimizer states": 8 * trained}
    assert whole.column(True)["peak in the optimizer step"] == 4 * (trained + frozen) + 12 * trained
    parts = estimate(policy_path, sharding=Sharding("zero3", 4), bf16=True).held.parts()
    assert parts["weights"] == 2 * (trained + frozen) / 4
    assert parts["DeepSpeed's float32 weights"] == trained and parts["optimizer states"] == 2 * trained
    offloaded = Sharding("zero3", 4, offload_weights=True, offload_optimizer=True)
    parts = estimate(policy_path, sharding=offloaded, bf16=True).held.parts()
    assert parts["weights"] == parts["optimizer states"] == parts["DeepSpeed's float32 weights"] == 0
    assert estimate(policy_path, optim="adamw_8bit").held.parts()["optimizer states"] == 2 * trained
    ddp = estimate(policy_path, sharding=Sharding(processes=2)).held.parts()
    assert ddp["DDP's gradient buckets"] == 4 * trained and ddp["weights"] == whole.held.parts()["weights"]
    fsdp = estimate(policy_path, sharding=Sharding("fsdp2", 2), bf16=True).held.parts()
    assert fsdp["weights"] == 4 * (trained + frozen) / 2


def test_lora_counts_adapters_head_and_projector(policy_path, config):
    weights = estimate(policy_path, use_peft=True, lora_r=4).model.weights
    text = config.text_config
    width, middle, keys = text.hidden_size, text.intermediate_size, text.hidden_size // 2
    ends = 2 * width + 2 * (width + keys) + 2 * width + 3 * (width + middle)  # q, k and v, o, MLP
    adapters = text.num_hidden_layers * 4 * ends
    merger = {name: w for name, w in load_file(policy_path / "model.safetensors").items() if "visual.merger" in name}
    in_full = width + sum(weight.numel() for weight in merger.values())
    assert sum(weight.numel for weight in weights if weight.is_trained) == adapters + in_full


@pytest.mark.parametrize("bf16", [False, True])
def test_quantized_layers_take_4_bits_and_a_scale(policy_path, config, bf16):
    weights = estimate(policy_path, use_peft=True, load_in_4bit=True, dtype="bfloat16", bf16=bf16).model.weights
    layers = [weight for weight in weights if weight.is_quantized]
    assert len(layers) == 7 * config.text_config.num_hidden_layers
    assert {weight.size for weight in layers} == {0.5 + 4 / 64}
    assert {weight.size for weight in weights if weight.is_trained} == {4 if bf16 else 2}


def test_reference_is_counted_unless_there_is_none(policy_path):
    with_it = estimate(policy_path, DPOConfig).held.parts()
    assert with_it["reference model"] == with_it["weights"]
    assert "reference model" not in estimate(policy_path, DPOConfig, precompute_ref_log_probs=True).held.parts()
    assert "reference model" not in estimate(policy_path, DPOConfig, use_peft=True).held.parts()
    assert "reference model" in estimate(policy_path, GRPOConfig, beta=0.04).held.parts()


def test_activations_grow_and_shrink_with_what_makes_them(policy_path):
    def activations(checkpointing=False, **options):
        return estimate(policy_path, **options).column(checkpointing)["activations and workspaces"]

    plain = activations()
    assert activations(checkpointing=True) < plain
    assert activations(share_prefixes=False) > plain
    assert activations(per_device_train_batch_size=16) == pytest.approx(2 * plain, rel=0.05)
    assert activations(attn_implementation="eager") > plain
    assert activations(bf16=True) < plain


def test_a_video_counts_where_its_limits_are_given(policy_path):
    limits = {"max_length": 1024, "max_image_tokens": 4, "video_max_frames": 8, "video_max_pixels": 20 * 28 * 28}
    video, image = estimate(policy_path, **limits), estimate(policy_path, max_length=1024, max_image_tokens=4)
    assert (video.batch.image_tokens, image.batch.image_tokens) == (4 * 20, 4)
    assert video.batch.row_length == image.batch.row_length == 1024
    assert video.column(False)["  of these, images"] > 15 * image.column(False)["  of these, images"]


def test_gpu_does_not_hold_the_logits(policy_path):
    """Triton's tiles are of 4,096 tokens and 32,768 words at most, whatever the batch."""
    sizes = [estimate(policy_path, DPOConfig, on_gpu=True, max_length=length).column(True) for length in (1024, 2048)]
    heads = [column["  of these, vocabulary logits or score"] for column in sizes]
    assert heads == pytest.approx([4 * 4096 * 32768] * 2, rel=0.05)


def test_live_tensors_count_real_ones_too():
    """A square of 1,024 numbers: 4 KiB for the product, its square, the sum's gradient and the weight's."""
    layer = nn.Linear(32, 32, bias=False)
    x = torch.ones(32, 32)
    with LiveTensors(layer) as live:
        product = layer(x)
        assert live.other == 4096
        product.square().sum().backward()
    assert live.gradients == 4096
    assert 3 * 4096 <= sum(live.peak()) <= 5 * 4096
    assert live.peak(0.0)[0] == 0


def test_launched_processes_know_their_sharding(policy_path, tmp_path):
    """`accelerate launch` with a ZeRO-2 config, and one process that prints."""
    settings = yaml.safe_load((ROOT / "accelerate_configs/deepspeed_zero2.yaml").read_text())
    settings |= {"num_processes": 2, "mixed_precision": "no", "use_cpu": True}
    settings["deepspeed_config"]["offload_optimizer_device"] = "cpu"
    (tmp_path / "zero2.yaml").write_text(yaml.safe_dump(settings))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "zero2.yaml")]
    recipe = [str(ROOT / "recipes/mpo.py"), "--config", str(ROOT / "recipes/configs/tiny/mpo.yaml")]
    options = {"model_name_or_path": policy_path, "dataset_name": policy_path, "use_cpu": True, "estimate": True}
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    command = [*launch, *recipe, *arguments]
    said = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300).stdout
    assert said.count("Memory of a process in GiB") == 1
    assert "ZeRO-2 on 2 GPUs, optimizer offloaded" in said and "reference model" in said
    assert not (tmp_path / "outputs").exists()


def test_peak_is_that_of_the_setting(policy_path):
    shown = str(estimate(policy_path, per_device_train_batch_size=64, gradient_checkpointing=True))
    peak, other = map(float, re.search(r"^peak +([\d.]+) +([\d.]+)$", shown, re.M).groups())
    assert peak < other and "with checkpointing (set)" in shown
    assert estimate(policy_path, per_device_train_batch_size=64).peak / GIB == pytest.approx(peak, abs=0.006)


def test_sharding_is_read_from_fsdp(monkeypatch, tmp_path):
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    assert str(Sharding.from_training_args(args)) == "one process"
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}.items():
        monkeypatch.setenv(name, value)
    assert Sharding.from_training_args(args) == Sharding("fsdp2", 1, offload_weights=True, offload_optimizer=True)
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "false")
    assert Sharding.from_training_args(args) == Sharding("fsdp2", 1)


def test_sampling_holds_weights_keys_and_values(policy_path, config):
    """8 samples of 64 image tokens, 128 of text and 512 of a response, in float32."""
    grpo = estimate(policy_path, GRPOConfig, max_pixels=64 * 28**2, num_generations=8)
    text = config.text_config
    keys = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    assert grpo.training_args.generation_batch_size == 8
    assert grpo.sampling() == 8 * (64 + 128 + 512) * text.num_hidden_layers * 2 * keys * 4
    sharded = estimate(policy_path, GRPOConfig, sharding=Sharding("zero3", 4), use_vllm=True)
    assert sharded.sampling() == 0.75 * 4 * sum(weight.numel for weight in sharded.model.weights)
