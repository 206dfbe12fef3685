"""Qwen2.5-VL with its language-model head replaced by a head that gives one score (Skywork-VL Reward, section 3.3)."""

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, Qwen2_5_VLConfig
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPreTrainedModel


class ScoreHead(nn.Linear):
    """A linear layer that always computes in float32: in bfloat16, scores near 10 are 0.06 apart and tie."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(hidden_states.float(), self.weight.float(), bias)


class Qwen2_5_VLForSequenceClassification(GenericForSequenceClassification, Qwen2_5_VLPreTrainedModel):
    """
    The Qwen2.5-VL backbone (vision tower, projector, decoder) with a linear head `score` on the hidden state of the
    last attended token. In Qwen2.5-VL's chat template this is the newline after the answer's `<|im_end|>`, the token
    that Skywork-VL-Reward-7B scores.

    `from_pretrained` takes a Qwen2.5-VL checkpoint, in the hub's layout or in transformers' own, and then draws the
    head at random, or a checkpoint of this class. Anything else missing or left over raises a `ValueError`:
    transformers itself would draw the missing weights at random and go on.

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

    vllm_head_name = (
        "language_model.score"  # vLLM makes its classifier of the decoder, which is a model of its own there
    )
    _keep_in_fp32_modules_strict = {"score"}  # of a reward checkpoint; a new head is made in float32 below

    def __init__(self, config: Qwen2_5_VLConfig):
        config.num_labels = 1  # transformers' default of 2 is a classifier's
        super().__init__(config)
        # Heads that are trained here have no bias. One of another project's has, once it is exported.
        bias = getattr(config, "score_bias", False)
        self.score = ScoreHead(config.text_config.hidden_size, 1, bias=bias, dtype=torch.float32)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        has_head = cls.__name__ in (model.config.architectures or [])
        missing = set(info["missing_keys"]) - (set() if has_head else {"score.weight"})
        unexpected = set(info["unexpected_keys"]) - {"lm_head.weight"}
        mismatched = set(info["mismatched_keys"])
        if missing or unexpected or mismatched:
            raise ValueError(
                f"{pretrained_model_name_or_path} does not fit {cls.__name__}: {len(missing)} weights are missing "
                f"{sorted(missing)[:4]}, {len(unexpected)} are left over {sorted(unexpected)[:4]}, {len(mismatched)} "
                "have another shape. Missing weights would be random, so the scores would be noise. Give a Qwen2.5-VL "
                "checkpoint or a checkpoint saved by this class."
            )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, save_original_format: bool = False, **kwargs):
        """
        Save under the names of `state_dict()`. transformers would rename them to the hub's layout, which
        `Trainer(...).train(resume_from_checkpoint=...)` does not read back: it would go on from the weights the run
        started with (huggingface/transformers#43701).
        """
        super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`):
                Tokens of prompt and response, padded on either side.
            attention_mask (`torch.Tensor` of shape `(batch_size, seq_len)`, *optional*):
                1 for tokens, 0 for padding. Without it no row may be padded.
            pixel_values (`torch.Tensor` of shape `(num_patches, patch_dim)`, *optional*):
                Patches of all images of the batch.
            image_grid_thw (`torch.LongTensor` of shape `(num_images, 3)`, *optional*):
                Patches of each image in time, height and width.
            mm_token_type_ids (`torch.IntTensor` of shape `(batch_size, seq_len)`, *optional*):
                1 where a token stands for an image. The processor returns it.

        Returns:
            `SequenceClassifierOutputWithPast` with `logits` of shape `(batch_size, 1)`, always float32.

        Raises:
            ValueError: If image tokens come without pixels, or pixels without `mm_token_type_ids`.
        """
        if image_grid_thw is not None and mm_token_type_ids is None:
            raise ValueError(
                "`image_grid_thw` came without `mm_token_type_ids`. Without them image tokens get plain 1-D positions "
                "and the scores are wrong. Pass every key that the processor returns on to the model."
            )
        has_images = pixel_values is not None or kwargs.get("mm_encoder_outputs") is not None
        if input_ids is not None and not has_images and (input_ids == self.config.image_token_id).any():
            raise ValueError(
                "`input_ids` holds image tokens, but there are no `pixel_values`. The score would not depend on the "
                "image. Pass the images to the processor together with the text."
            )
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
        if attention_mask is None:
            last_token = torch.full_like(rows, hidden_states.shape[1] - 1)
        else:
            positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
            last_token = (attention_mask * positions).argmax(-1).to(hidden_states.device)
        return SequenceClassifierOutputWithPast(
            logits=self.score(hidden_states[rows, last_token]),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# Checkpoint renames are looked up by class name, and a class outside of transformers has none: a hub checkpoint would
# load with a random decoder (huggingface/transformers#47114).
# An export for vLLM has the head under vLLM's name.
register_checkpoint_conversion_mapping(
    Qwen2_5_VLForSequenceClassification.__name__,
    [
        *get_checkpoint_conversion_mapping("Qwen2_5_VLForConditionalGeneration"),
        WeightRenaming(rf"^{Qwen2_5_VLForSequenceClassification.vllm_head_name}", "score"),
    ],
)
AutoModelForSequenceClassification.register(Qwen2_5_VLConfig, Qwen2_5_VLForSequenceClassification, exist_ok=True)
