"""What is trained on a quantized model. The head under FSDP2 is tested by its gradients, in test_recipes.py."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import RewardConfig

from vl_reward import Qwen2_5_VLForSequenceClassification, VisionRewardTrainer
from vl_reward.tiny.preferences import PREFERENCE_FEATURES, as_png


def test_qlora_trains_head_and_projector_in_the_values_that_were_loaded(policy_path, processor, image_pairs, tmp_path):
    torch.manual_seed(0)
    quantization = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["model.visual", "score"])
    model = Qwen2_5_VLForSequenceClassification.from_pretrained(
        policy_path, dtype="float32", quantization_config=quantization
    )
    loaded = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if "merger" in name or "score" in name
    }
    trainer = VisionRewardTrainer(
        model,
        RewardConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none"),
        processing_class=processor,
        train_dataset=Dataset.from_list(as_png(image_pairs[:2]), PREFERENCE_FEATURES),
        peft_config=LoraConfig("SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score", "merger"]),
    )
    trained = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert {value.dtype for value in trained.values()} == {torch.float32}
    in_full = {
        name.removeprefix("base_model.model.").replace("modules_to_save.default.", ""): value
        for name, value in trained.items()
        if "modules_to_save" in name
    }
    assert in_full.keys() == loaded.keys() and len(loaded) == 6
    assert all(value.equal(loaded[name]) for name, value in in_full.items())
    assert any(not value.equal(value.bfloat16().float()) for value in in_full.values())


def test_processes_that_do_not_know_of_each_other_are_refused(
    policy_path, processor, image_pairs, tmp_path, monkeypatch
):
    model = Qwen2_5_VLForSequenceClassification.from_pretrained(policy_path, dtype="float32")
    args = RewardConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none")
    dataset = Dataset.from_list(as_png(image_pairs[:2]), PREFERENCE_FEATURES)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, and each would train alone"):
        VisionRewardTrainer(model, args, processing_class=processor, train_dataset=dataset)
