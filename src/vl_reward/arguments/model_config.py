"""TRL's model arguments, and those that vision-language models and reward models need besides."""

from dataclasses import dataclass, field, fields
from typing import Literal

from peft import PeftConfig
from transformers import AutoConfig, BitsAndBytesConfig
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..models.families import family_of
from ..models.vision_reward_model import VisionRewardModel
from .engine_arguments import SERVER_URL
from .pixel_budget import VideoBudget, image_pixels


@dataclass
class VisionModelConfig(VideoBudget, ModelConfig):
    """
    [`~trl.ModelConfig`] with the pixel budget of an image, and [`VideoBudget`].

    Parameters:
        lora_target_modules (`list[str]`, *optional*):
            The modules that LoRA adapts: one pattern, or a list of names. By default what the checkpoint's family
            names: the language model's projections.
        max_pixels (`int`, *optional*, defaults to `1003520`):
            Larger images are scaled down to this many pixels. One visual token of Qwen2.5-VL is 28 x 28 pixels, so this
            is 1,280 tokens, and 980 of Qwen3-VL's; the limit in the hub's checkpoints is 16,384.
        max_image_tokens (`int`, *optional*):
            Larger images are scaled down to this many visual tokens, whatever the family's are. It stands in the place
            of `max_pixels`.
        share_prefixes (`bool`, *optional*, defaults to `True`):
            Whether the tokens and images that rows of a batch have in common are computed once.
        estimate (`bool`, *optional*, defaults to `False`):
            Whether the recipe prints what it needs of a GPU's memory, and ends there.
    """

    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "The modules that LoRA adapts: one pattern, or a list of names. Default: the language model's "
            "projections."
        },
    )
    max_pixels: int = field(
        default=1280 * 28 * 28,
        metadata={
            "help": "Larger images are scaled down to this many pixels. One visual token of Qwen2.5-VL is 28 x 28 "
            "pixels, so the default is 1,280 tokens; the limit in the hub's checkpoints is 16,384."
        },
    )
    max_image_tokens: int | None = field(
        default=None,
        metadata={"help": "Larger images are scaled down to this many visual tokens, in place of `max_pixels`."},
    )
    share_prefixes: bool = field(
        default=True,
        metadata={"help": "Whether tokens and images that the rows of a batch share are computed only once."},
    )
    estimate: bool = field(
        default=False,
        metadata={"help": "Whether the recipe only prints how much GPU memory it needs. It loads no model then."},
    )

    @property
    def image_pixels(self) -> int:
        """The budget in pixels, for the processor."""
        return image_pixels(self.model_name_or_path, self.model_revision, self.max_pixels, self.max_image_tokens)

    @property
    def family(self) -> type[VisionRewardModel]:
        """What the checkpoint's family says of itself."""
        return family_of(AutoConfig.from_pretrained(self.model_name_or_path, revision=self.model_revision))

    @property
    def peft_config(self) -> PeftConfig | None:
        """As TRL reads it, with the family's targets where none are given."""
        config = get_peft_config(self)
        if config is not None and config.target_modules is None:
            config.target_modules = self.family.lora_targets
        return config

    @property
    def quantization_config(self) -> BitsAndBytesConfig | None:
        """As TRL reads it. The vision tower with its projector, and the heads, stay as they are."""
        config = get_quantization_config(self)
        if config is not None:  # the setting is that of 4 bits, too, whatever its name says
            config.llm_int8_skip_modules = [f"model.{self.family.vision_tower}", "score", "lm_head"]
        return config


@dataclass
class VisionRewardModelConfig(VisionModelConfig):
    """
    [`VisionModelConfig`] of a reward model that is trained.

    Parameters:
        train_projector (`bool`, *optional*, defaults to `True`):
            Whether the projector is trained. The vision tower before it is not.
        lora_task_type (`str`, *optional*, defaults to `"SEQ_CLS"`):
            PEFT's task type. To PEFT a reward model is a classifier.
        lora_modules_to_save (`list[str]`, *optional*):
            Modules that are trained in full beside LoRA. By default these are the head, which is drawn at random, and
            the projector where it is trained.
    """

    train_projector: bool = field(
        default=True, metadata={"help": "Whether the projector is trained. The vision tower is not."}
    )

    lora_task_type: str = field(
        default="SEQ_CLS", metadata={"help": "PEFT's task type. To PEFT a reward model is a classifier."}
    )
    lora_modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules that are trained in full beside LoRA. Default: the head and the projector."},
    )


@dataclass
class RewardModelConfig(VideoBudget, ModelConfig):
    """
    [`~trl.ModelConfig`] of a reward model that scores, with [`VideoBudget`].

    Parameters:
        max_batch_tokens (`int`, *optional*, defaults to `16384`):
            Tokens scored at a time, per process.
        max_length (`int`, *optional*):
            Refuse a response with more tokens than this, prompt and images included.
        max_pixels (`int`, *optional*):
            Larger images are scaled down to this many pixels, by default to those that the model was trained with.
        max_image_tokens (`int`, *optional*):
            Larger images are scaled down to this many visual tokens. It stands in the place of `max_pixels`.
        share_prefixes (`bool`, *optional*, defaults to `True`):
            Whether the tokens and images that responses have in common are computed once.
        engine (`str`, *optional*, defaults to `"transformers"`):
            `transformers` in this process, or `server`: vLLM servers. `model_name_or_path` is then the folder that
            `recipes/export_reward.py` wrote and the servers serve.
        server_url (`list[str]`, *optional*, defaults to `["http://localhost:8000/v1"]`):
            The servers' addresses.
        requests_in_flight (`int`, *optional*, defaults to `64`):
            Responses that each server is asked about at a time.

    Raises:
        ValueError: If an option is set that the engine has no use for.
    """

    max_batch_tokens: int = field(
        default=16384, metadata={"help": "The number of tokens that each process scores at a time."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "The most tokens of a prompt with its images and a response. More are refused."}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Larger images are scaled down to this many pixels; by default as in training."}
    )
    max_image_tokens: int | None = field(
        default=None,
        metadata={"help": "Larger images are scaled down to this many visual tokens, in place of `max_pixels`."},
    )
    share_prefixes: bool = field(
        default=True, metadata={"help": "Whether tokens and images that responses share are computed only once."}
    )
    engine: Literal["transformers", "server"] = field(
        default="transformers", metadata={"help": "What scores: `transformers` here, or `server`, vLLM servers."}
    )
    server_url: list[str] = field(
        default_factory=lambda: [SERVER_URL], metadata={"help": "The addresses of the vLLM servers."}
    )
    requests_in_flight: int = field(
        default=64, metadata={"help": "The number of responses that each server scores at a time."}
    )

    def __post_init__(self):
        super().__post_init__()
        decided = ("dtype", "model_revision", "attn_implementation", "max_batch_tokens", "share_prefixes")
        decided += ("max_pixels", "max_image_tokens", "video_fps", "video_max_frames", "video_max_pixels")
        defaults = {one.name: one.default for one in fields(self)}
        for name in decided if self.engine == "server" else ():
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"`{name}: {getattr(self, name)}` has no effect with `engine: server`: the command that starts the "
                    "server decides it. Remove it."
                )

    @property
    def image_pixels(self) -> int | None:
        """The budget in pixels, for the processor; `None` for the checkpoint's own."""
        return image_pixels(self.model_name_or_path, self.model_revision, self.max_pixels, self.max_image_tokens)
