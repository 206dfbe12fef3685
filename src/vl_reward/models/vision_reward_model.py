"""A vision-language backbone with its language-model head replaced by a head that gives one score: all families'."""

from typing import ClassVar

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from .repeated_visuals import for_backbone


class ScoreHead(nn.Linear):
    """A linear layer that always computes in float32: in bfloat16, scores near 10 are 0.06 apart and tie."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(hidden_states.float(), self.weight.float(), bias)


class VisionRewardModel(GenericForSequenceClassification):
    """
    A backbone (vision tower, projector, decoder) with a linear head `score` on the hidden state of the last attended
    token. Each family has a class of its own, which derives from this one and from the family's `PreTrainedModel`.

    `from_pretrained` takes a checkpoint of the family, in the hub's layout or in transformers' own, and then draws the
    head at random, or a checkpoint of this class. Anything else missing or left over raises a `ValueError`:
    transformers itself would draw the missing weights at random and go on.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            The family's configuration. Its `num_labels` becomes 1. The head has a bias where `score_bias` is set.

    Class attributes, which a family sets:
        family (`str`):
            Its name in messages.
        backbone_class (`type`):
            transformers' model without a head, in which [`share_prefixes`] works.
        vision_tower (`str`):
            The module of the backbone that encodes images.
        projectors (`tuple[str, ...]`):
            The modules inside the vision tower that map to the decoder's width: lists of those for layers in between,
            and, as the last, the one that ends it.
        vllm_head_name (`str`):
            What vLLM calls the head.
        lora_targets (`str`):
            The pattern of the modules that LoRA adapts: the decoder's projections. A bare name such as `q_proj` may
            match the vision tower, too.
        times_in_text (`bool`):
            Whether the times of a video's frames stand as text between them. Else they are positions.
    """

    family: ClassVar[str]
    backbone_class: ClassVar[type]
    vision_tower: ClassVar[str]
    projectors: ClassVar[tuple[str, ...]]
    vllm_head_name: ClassVar[str]
    lora_targets: ClassVar[str]
    times_in_text: ClassVar[bool]

    _keep_in_fp32_modules_strict = {"score"}  # of a reward checkpoint; a new head is made in float32 below

    def __init__(self, config: PreTrainedConfig):
        config.num_labels = 1  # transformers' default of 2 is a classifier's
        super().__init__(config)
        # Heads that are trained here have no bias. One of another project's has, once it is exported.
        bias = getattr(config, "score_bias", False)
        self.score = ScoreHead(config.text_config.hidden_size, 1, bias=bias, dtype=torch.float32)
        self.post_init()

    @classmethod
    def vision_tower_of(cls, model: nn.Module) -> nn.Module:
        """The vision tower of `model`, a reward model or a policy of this family."""
        return model.model.get_submodule(cls.vision_tower)

    @classmethod
    def projectors_of(cls, model: nn.Module) -> dict[str, nn.Module]:
        """The projectors of `model`, a reward model or a policy of this family, by their names in it."""
        found = {}
        for name in cls.projectors:
            projector, name = cls.vision_tower_of(model).get_submodule(name), f"model.{cls.vision_tower}.{name}"
            each = enumerate(projector) if isinstance(projector, nn.ModuleList) else [(None, projector)]
            found |= {name if number is None else f"{name}.{number}": module for number, module in each}
        return found

    @classmethod
    def trained_in_full(cls, model: nn.Module) -> list[str]:
        """
        The modules of `model` that are trained in full beside LoRA: the head, which is drawn at random, and projectors
        that are trained.
        """
        projectors = cls.projectors_of(model).items()
        return ["score", *(name for name, module in projectors if next(module.parameters()).requires_grad)]

    @classmethod
    def why_not_shared(cls, text_config: PreTrainedConfig) -> str | None:
        """What in a decoder with `text_config` keeps rows from sharing their beginnings, or `None`."""
        return None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        check_family(cls, pretrained_model_name_or_path, kwargs)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        has_head = cls.__name__ in (model.config.architectures or [])
        missing = set(info["missing_keys"]) - (set() if has_head else {"score.weight"})
        unexpected = set(info["unexpected_keys"]) - {"lm_head.weight"}
        mismatched = set(info["mismatched_keys"])
        if missing or unexpected or mismatched:
            raise ValueError(
                f"{pretrained_model_name_or_path} does not fit {cls.__name__}: {len(missing)} weights are missing "
                f"{sorted(missing)[:4]}, {len(unexpected)} are left over {sorted(unexpected)[:4]}, {len(mismatched)} "
                "have another shape. Missing weights would be random, so the scores would be noise. Give a "
                f"{cls.family} checkpoint or a checkpoint saved by this class."
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
        pixel_values_videos: torch.Tensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
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
                1 where a token stands for an image, 2 where it stands for a video. The processor returns it.
            pixel_values_videos (`torch.Tensor` of shape `(num_patches, patch_dim)`, *optional*):
                Patches of all videos of the batch.
            video_grid_thw (`torch.LongTensor` of shape `(num_videos, 3)`, *optional*):
                Patches of each video in time, height and width.
            **kwargs:
                Passed on to the backbone, as `second_per_grid_ts` is: the seconds between a video's patches in time.
                With `image_numbers` or `video_numbers`, pixels and grids are those of distinct images or videos, and
                the numbers say which of them each one in the rows is.

        Returns:
            `SequenceClassifierOutputWithPast` with `logits` of shape `(batch_size, 1)`, always float32.

        Raises:
            ValueError: If image or video tokens come without pixels, or pixels without `mm_token_type_ids`.
        """
        visuals = {
            "image": (pixel_values, image_grid_thw, "pixel_values"),
            "video": (pixel_values_videos, video_grid_thw, "pixel_values_videos"),
        }
        for kind, (pixels, grid, key) in visuals.items():
            if grid is not None and mm_token_type_ids is None:
                raise ValueError(
                    f"`{kind}_grid_thw` came without `mm_token_type_ids`. Without them {kind} tokens get plain 1-D "
                    "positions and the scores are wrong. Pass every key that the processor returns on to the model."
                )
            given = pixels is not None or kwargs.get("mm_encoder_outputs") is not None
            token = getattr(self.config, f"{kind}_token_id")
            if input_ids is not None and not given and (input_ids == token).any():
                raise ValueError(
                    f"`input_ids` holds {kind} tokens, but there are no `{key}`. The score would not depend on the "
                    f"{kind}. Pass the {kind}s to the processor together with the text."
                )
        kwargs |= {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": pixel_values,
            "image_grid_thw": image_grid_thw,
            "mm_token_type_ids": mm_token_type_ids,
            "pixel_values_videos": pixel_values_videos,
            "video_grid_thw": video_grid_thw,
        }
        outputs = self.model(**for_backbone(self.model, kwargs))
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


def check_family(reward_class: type[VisionRewardModel], path: str, kwargs: dict) -> None:
    """
    Check that a checkpoint is of a reward model's family. transformers would warn, take what fits of the config, and
    draw what it does not find.

    Args:
        reward_class (`type[VisionRewardModel]`):
            The family's class.
        path (`str`):
            The checkpoint's folder, or its name on the hub.
        kwargs (`dict`):
            What `from_pretrained` was given: a `config`, and where to look on the hub.

    Raises:
        ValueError: If the checkpoint's config is another family's.
    """
    expected = reward_class.config_class.model_type
    config = kwargs.get("config")
    if isinstance(config, PreTrainedConfig):
        found = config.model_type
    else:
        of_hub = ("revision", "subfolder", "token", "cache_dir", "local_files_only")
        of_hub = {key: kwargs[key] for key in of_hub if key in kwargs}
        found = PreTrainedConfig.get_config_dict(config or path, **of_hub)[0].get("model_type")
    if found != expected:
        raise ValueError(
            f"{path} holds a model of type {found!r}, and {reward_class.__name__} is for {reward_class.family}, "
            f"{expected!r}. Give a {reward_class.family} checkpoint, or load this one with "
            "`AutoModelForSequenceClassification`, which takes the class that fits."
        )


def register_with_transformers(reward_class: type[VisionRewardModel], policy_class: str) -> None:
    """
    Let `AutoModelForSequenceClassification` know a family, and let its class read the checkpoints of its policies.

    Checkpoint renames are looked up by class name, and a class outside of transformers has none: a hub checkpoint would
    load with a random decoder (huggingface/transformers#47114).

    Args:
        reward_class (`type[VisionRewardModel]`):
            The family's class.
        policy_class (`str`):
            The name of transformers' class for its policies, whose renames hold for `reward_class`, too.
    """
    renames = get_checkpoint_conversion_mapping(policy_class) or []  # Qwen3-VL's layout on the hub is transformers' own
    of_vllm = WeightRenaming(rf"^{reward_class.vllm_head_name}", "score")  # an export's
    register_checkpoint_conversion_mapping(reward_class.__name__, [*renames, of_vllm])
    AutoModelForSequenceClassification.register(reward_class.config_class, reward_class, exist_ok=True)
