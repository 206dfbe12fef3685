"""Train vision-language reward models with TRL, and use them."""

from .data_collator import DataCollatorForVisionReward
from .model_config import VisionModelConfig
from .modeling_qwen2_5_vl import Qwen2_5_VLForSequenceClassification
from .mpo_trainer import MPOTrainer
from .prefix_sharing import share_prefixes, unshare_prefixes
from .recipe_parser import RecipeParser
from .reward_trainer import VisionRewardTrainer
from .sampler import ResponseSampler
from .scorer import RewardScorer


__all__ = [
    "DataCollatorForVisionReward",
    "MPOTrainer",
    "Qwen2_5_VLForSequenceClassification",
    "RecipeParser",
    "ResponseSampler",
    "RewardScorer",
    "VisionModelConfig",
    "VisionRewardTrainer",
    "share_prefixes",
    "unshare_prefixes",
]
