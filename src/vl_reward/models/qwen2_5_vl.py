"""Qwen2.5-VL as a reward model (Skywork-VL Reward, section 3.3)."""

from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel, Qwen2_5_VLPreTrainedModel

from .vision_reward_model import VisionRewardModel, register_with_transformers


class Qwen2_5_VLForSequenceClassification(VisionRewardModel, Qwen2_5_VLPreTrainedModel):
    """
    Qwen2.5-VL as a [`VisionRewardModel`]. In Qwen2.5-VL's chat template the token scored is the newline after the
    answer's `<|im_end|>`, the token that Skywork-VL-Reward-7B scores.

    Example:
    ```python
    >>> from transformers import AutoProcessor
    >>> from vl_reward import Qwen2_5_VLForSequenceClassification

    >>> model = Qwen2_5_VLForSequenceClassification.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
    >>> processor = AutoProcessor.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
    >>> inputs = processor(text=[text], images=[image], return_tensors="pt")
    >>> model(**inputs).logits  # of shape (batch_size, 1)
    ```
    """

    family = "Qwen2.5-VL"
    backbone_class = Qwen2_5_VLModel
    vision_tower = "visual"
    projectors = ("merger",)
    vllm_head_name = "language_model.score"  # its decoder is a whole Qwen2ForCausalLM there
    lora_targets = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    times_in_text = False

    @classmethod
    def why_not_shared(cls, text_config: Qwen2_5_VLTextConfig) -> str | None:
        """Layers with sliding windows, of which `text_config` says whether there are any."""
        return "layers with sliding windows" if "sliding_attention" in text_config.layer_types else None


register_with_transformers(Qwen2_5_VLForSequenceClassification, "Qwen2_5_VLForConditionalGeneration")
