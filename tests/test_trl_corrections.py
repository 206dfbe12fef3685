"""What is trained on a quantized model. The head under FSDP2 is tested by its gradients, in test_recipes.py."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import RewardConfig

from vl_reward import Qwen2_5_VLForSequenceClassification, VisionRewardTrainer
from vl_reward.tiny.preferences import PREFERENCE_FEATURES, as_png


@pytest.mark.parametrize(("bits", "dtype"), [(4, "float32"), (4, "bfloat16"), (16, "bfloat16")])
def test_what_is_trained_is_in_float32_and_has_the_values_that_were_loaded(
    bits, dtype, policy_path, processor, image_pairs, tmp_path
):
    """TRL turns it into bfloat16 where the base is quantized; PEFT leaves head and projector in the base's dtype."""
    torch.manual_seed(0)
    quantization = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["model.visual", "score"])
    model = Qwen2_5_VLForSequenceClassification.from_pretrained(
        policy_path, dtype=dtype, quantization_config=quantization if bits == 4 else None
    )
    loaded = {name: value.clone() for name, value in model.state_dict().items() if "merger" in name or "score" in name}
    trainer = VisionRewardTrainer(
        model,
        RewardConfig(str(tmp_path), bf16=dtype == "bfloat16", use_cpu=True, report_to="none", max_steps=1),
        processing_class=processor,
        train_dataset=Dataset.from_list(as_png(image_pairs[:2]), PREFERENCE_FEATURES),
        peft_config=LoraConfig("SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score", "merger"]),
    )
    # By what a quantized weight is read is none, and a checkpoint with it cannot be read under FSDP2.
    of_torch = {name for name, _ in [*trainer.model.named_parameters(), *trainer.model.named_buffers()]}
    assert trainer.model.state_dict().keys() <= of_torch
    trained = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert {value.dtype for value in trained.values()} == {torch.float32}
    in_full = {
        name.removeprefix("base_model.model.").replace("modules_to_save.default.", ""): value.detach().clone()
        for name, value in trained.items()
        if "modules_to_save" in name
    }
    assert in_full.keys() == loaded.keys() and len(loaded) == 6
    assert all(value.equal(loaded[name].float()) for name, value in in_full.items())
    trainer.train()
    step = (
        trainer.model.get_parameter("base_model.model.score.modules_to_save.default.weight") - in_full["score.weight"]
    )
    assert 0 < step.abs().max() < 1e-3


def test_processes_that_do_not_know_of_each_other_are_refused(
    policy_path, processor, image_pairs, tmp_path, monkeypatch
):
    model = Qwen2_5_VLForSequenceClassification.from_pretrained(policy_path, dtype="float32")
    args = RewardConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none")
    dataset = Dataset.from_list(as_png(image_pairs[:2]), PREFERENCE_FEATURES)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, and each would train alone"):
        VisionRewardTrainer(model, args, processing_class=processor, train_dataset=dataset)
