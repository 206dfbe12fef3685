"""The families that this project knows. A new one is a file beside this one, and an entry here."""

from transformers import PreTrainedConfig

from .qwen2_5_vl import Qwen2_5_VLForSequenceClassification
from .qwen3_vl import Qwen3VLForSequenceClassification
from .vision_reward_model import VisionRewardModel


FAMILIES: tuple[type[VisionRewardModel], ...] = (Qwen2_5_VLForSequenceClassification, Qwen3VLForSequenceClassification)
BACKBONES = tuple(family.backbone_class for family in FAMILIES)


def family_of(config: PreTrainedConfig) -> type[VisionRewardModel]:
    """
    The class of the reward models of a family, whose attributes say what is the family's own.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            That of a policy or a reward model.

    Raises:
        ValueError: If no family has this config.
    """
    for family in FAMILIES:
        if type(config) is family.config_class:
            return family
    raise ValueError(
        f"The checkpoint is of type {config.model_type!r}, and this project knows "
        f"{' and '.join(family.family for family in FAMILIES)}. docs/adding_a_family.md says how to add one."
    )
