"""Qwen3-VL as a reward model."""

from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel, Qwen3VLPreTrainedModel

from .vision_reward_model import VisionRewardModel, register_with_transformers


class Qwen3VLForSequenceClassification(VisionRewardModel, Qwen3VLPreTrainedModel):
    """
    Qwen3-VL as a [`VisionRewardModel`]. In its chat template, too, the token scored is the newline after the answer's
    `<|im_end|>`. Its vision tower has one projector for the last layer, and one for each layer whose features are added
    inside the decoder (DeepStack, arXiv 2406.04334).

    Example:
    ```python
    >>> from transformers import AutoProcessor
    >>> from vl_reward import Qwen3VLForSequenceClassification

    >>> model = Qwen3VLForSequenceClassification.from_pretrained("Qwen/Qwen3-VL-8B-Instruct")
    >>> processor = AutoProcessor.from_pretrained("Qwen/Qwen3-VL-8B-Instruct")
    >>> inputs = processor(text=[text], images=[image], return_tensors="pt")
    >>> model(**inputs).logits  # of shape (batch_size, 1)
    ```
    """

    family = "Qwen3-VL"
    backbone_class = Qwen3VLModel
    vision_tower = "visual"
    projectors = ("deepstack_merger_list", "merger")
    vllm_head_name = "score"
    lora_targets = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    times_in_text = True


register_with_transformers(Qwen3VLForSequenceClassification, "Qwen3VLForConditionalGeneration")
