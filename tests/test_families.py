"""What holds for every family beside scores and sharing: budgets in tokens, thoughts, adapters, estimates."""

import logging
import re

import pytest
import torch
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin
from datasets import Dataset
from peft import LoraConfig
from test_configs import ROOT, load_recipe
from test_reward_trainer import reward_config
from transformers import AutoModelForSequenceClassification, AutoProcessor, LlamaConfig
from trl import RewardConfig

from vl_reward import (
    DataCollatorForVisionReward,
    RewardScorer,
    VisionModelConfig,
    VisionRewardModelConfig,
    VisionRewardTrainer,
)
from vl_reward.arguments.model_config import RewardModelConfig
from vl_reward.data.collators import DataCollatorForMPO
from vl_reward.data.encoding import encode_prompts
from vl_reward.memory.estimate import MemoryEstimate
from vl_reward.memory.sharding import Sharding
from vl_reward.models.families import family_of
from vl_reward.preflight.row_checks import PromptCheck
from vl_reward.preflight.template_check import check_template
from vl_reward.tiny.preferences import PREFERENCE_FEATURES


PIXELS = {"qwen2_5_vl": 28, "qwen3_vl": 32}  # to a side of a visual token
# What Qwen3-VL-Thinking's own template does with an answer, and with the end of a prompt.
THINKING = (
    "{%- for message in messages %}"
    "{%- if message.content is string %}{% set text = message.content %}"
    "{%- else %}{% set parts = namespace(text='') %}{% for part in message.content %}"
    "{%- set parts.text = parts.text + (part.text if part.type == 'text' else "
    "'<|vision_start|><|image_pad|><|vision_end|>') %}{% endfor %}{% set text = parts.text %}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and loop.last %}"
    "{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in text else '' %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' + text.split('</think>')[-1].lstrip('\n') }}"
    "{%- else %}{{ text.split('</think>')[-1].lstrip('\n') }}{% endif %}"
    "{{ '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


@pytest.fixture
def thinking(policy_path, family):
    processor = AutoProcessor.from_pretrained(policy_path)
    processor.chat_template = THINKING
    return processor


def rows_of(processor, batch):
    """The text of each row of a batch, image tokens counted as one."""
    rows = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    image = re.escape(processor.image_token)
    return [re.sub(f"(?:{image})+", processor.image_token, processor.tokenizer.decode(row)) for row in rows]


@pytest.mark.parametrize("config_class", [VisionModelConfig, RewardModelConfig])
def test_a_budget_in_tokens_is_the_same_in_every_family(policy_path, family, image_pairs, config_class):
    config = config_class(model_name_or_path=str(policy_path), max_image_tokens=24)
    assert config.image_pixels == 24 * PIXELS[family] ** 2
    processor = AutoProcessor.from_pretrained(policy_path, max_pixels=config.image_pixels)
    picture = image_pairs[0]["images"][0].resize((1000, 1000))
    assert processor.image_processor(images=[picture])["image_grid_thw"].prod().item() // 4 == 16  # 4 x 4 of 24
    assert config_class(model_name_or_path="no/network", max_pixels=5).image_pixels == 5


def test_a_scorer_takes_a_budget_of_its_own(reward_model, processor, tmp_path, family):
    reward_model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pixels = 24 * PIXELS[family] ** 2
    scorers = [RewardScorer.from_pretrained(tmp_path, max_pixels=budget) for budget in (pixels, None)]
    given, kept = (scorer.processor.image_processor.size.longest_edge for scorer in scorers)
    assert given == pixels and kept == processor.image_processor.size.longest_edge != pixels


def test_a_thought_is_sampled_scored_and_trained_on_as_one_text(thinking, image_pairs):
    row, sampled = image_pairs[0], "I see 4 and 5.\n</think>\n\nAnswer: 9"
    (prompt,) = rows_of(thinking, encode_prompts(thinking, [row["prompt"]], [row["images"]], ["a"]))
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")
    pair = row | {
        "chosen": [{"role": "assistant", "content": sampled}],
        "rejected": [{"role": "assistant", "content": f"<think>\n{sampled}"}],  # as a set of others' data has it
    }
    scored = rows_of(thinking, DataCollatorForVisionReward(thinking)([pair]))
    assert scored == [f"{prompt}{sampled}<|im_end|>\n"] * 2
    trained = DataCollatorForMPO(thinking)([pair])
    assert [text.rstrip("\n") for text in rows_of(thinking, trained)] == [text.rstrip("\n") for text in scored]
    learnt = trained["input_ids"][0][trained["completion_mask"][0].bool()]
    assert thinking.tokenizer.decode(learnt).startswith(sampled)


def test_an_answer_without_a_thought_gets_the_templates_empty_one(thinking, image_pairs):
    row = image_pairs[0] | {side: [{"role": "assistant", "content": "9"}] for side in ("chosen", "rejected")}
    scored = rows_of(thinking, DataCollatorForVisionReward(thinking)([row]))
    assert scored[0].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n9<|im_end|>\n")


def test_a_template_without_thoughts_leaves_one_in_an_answer_as_it_is(processor, image_pairs):
    answer = "<think>\nI see 4 and 5.\n</think>\n\n9"
    row = image_pairs[0] | {side: [{"role": "assistant", "content": answer}] for side in ("chosen", "rejected")}
    scored = rows_of(processor, DataCollatorForVisionReward(processor)([row]))
    assert scored[0].endswith(f"<|im_start|>assistant\n{answer}<|im_end|>\n")


def test_an_instruct_model_that_is_made_to_think_is_noticed(thinking, processor, caplog):
    with caplog.at_level(logging.WARNING):
        check_template(processor)
        check_template(thinking)
        thinking.tokenizer.name_or_path = "Qwen/Qwen3-VL-8B-Thinking"
        PromptCheck(thinking)
        assert caplog.text == ""
        thinking.tokenizer.name_or_path = "Qwen/Qwen3-VL-8B-Instruct"
        PromptCheck(thinking)
    assert "Qwen3-VL-8B-Instruct ends a prompt in 'assistant\\n<think>\\n'" in caplog.text


def test_a_thought_in_the_prompt_alone_is_refused(processor, policy_path):
    """LlamaFactory#9392: an empty thought before what is sampled, and none in what is trained on."""
    other = AutoProcessor.from_pretrained(policy_path)
    other.chat_template = other.chat_template.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")
    other.chat_template = other.chat_template.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
    with pytest.raises(ValueError, match="What is sampled would not be what is scored"):
        PromptCheck(other)


def test_lora_trains_head_and_projectors_in_full(reward_model, processor, image_pairs, tmp_path):
    expected = set(reward_model.trained_in_full(reward_model))
    trainer = VisionRewardTrainer(
        model=reward_model,
        args=reward_config(tmp_path),
        train_dataset=Dataset.from_list(image_pairs, PREFERENCE_FEATURES),
        processing_class=processor,
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS"),
    )
    full = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad and "lora_" not in name}
    modules = {name.split(".modules_to_save")[0].removeprefix("base_model.model.") for name in full}
    assert modules == expected
    assert len(modules) == {1: 2, 2: 4}[len(reward_model.projectors)]  # two layers of DeepStack
    trainer.train()
    for name, weight in trainer.model.named_parameters():
        if ".modules_to_save." in name and name.endswith("weight"):
            original = trainer.model.get_parameter(name.replace("modules_to_save.default", "original_module"))
            assert not torch.equal(weight, original), name


def test_a_projector_is_trained_unless_it_is_not(reward_model):
    recipe = load_recipe(ROOT / "recipes/reward_stage1.py")
    recipe.freeze(reward_model, VisionRewardModelConfig())
    tower = reward_model.vision_tower_of(reward_model)
    trained = {name.split(".")[0] for name, weight in tower.named_parameters() if weight.requires_grad}
    assert trained == set(reward_model.projectors)
    recipe.freeze(reward_model, VisionRewardModelConfig(train_projector=False))
    assert not any(weight.requires_grad for weight in tower.parameters())
    assert reward_model.trained_in_full(reward_model) == ["score"]
    assert reward_model.model.language_model.embed_tokens.weight.requires_grad


def test_an_estimate_counts_every_weight(policy_path, reward_model):
    recipe = load_recipe(ROOT / "recipes/reward_stage1.py")
    args = RewardConfig(output_dir="unused", use_cpu=True, bf16=False, report_to="none", max_length=256)
    model_args = VisionRewardModelConfig(model_name_or_path=str(policy_path))
    estimate = MemoryEstimate(AutoModelForSequenceClassification, args, model_args, recipe.freeze, sharding=Sharding())
    recipe.freeze(reward_model, model_args)
    trained = sum(weight.numel() for weight in reward_model.parameters() if weight.requires_grad)
    assert estimate.held.parts() == {"weights": 4 * reward_model.num_parameters(), "optimizer states": 8 * trained}
    assert (
        0 < estimate.column(True)["activations and workspaces"] < estimate.column(False)["activations and workspaces"]
    )


def test_fsdp2_shards_each_layer_of_decoder_and_vision_tower(reward_model):
    """The names of one family's layers stood in the config: another family could not be launched with it."""
    settings = yaml.safe_load((ROOT / "accelerate_configs/fsdp2.yaml").read_text())["fsdp_config"]
    names = settings.get("fsdp_transformer_layer_cls_to_wrap")
    policy = settings["fsdp_auto_wrap_policy"].lower()
    plugin = FullyShardedDataParallelPlugin(2, auto_wrap_policy=policy, transformer_cls_names_to_wrap=names)
    plugin.set_auto_wrap_policy(reward_model)
    layers = reward_model.model.language_model.layers, reward_model.model.visual.blocks
    assert plugin.auto_wrap_policy.keywords["transformer_layer_cls"] == {type(blocks[0]) for blocks in layers}


def test_a_model_of_no_known_family_is_refused():
    with pytest.raises(ValueError, match="of type 'llama', and this project knows Qwen2.5-VL and Qwen3-VL"):
        family_of(LlamaConfig())
