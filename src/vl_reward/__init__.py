"""Train vision-language reward models with TRL, and use them."""

from .arguments.dataset_arguments import DatasetArguments
from .arguments.model_config import RewardModelConfig, VisionModelConfig, VisionRewardModelConfig
from .arguments.recipe_parser import RecipeParser
from .arguments.sampling_parameters import SamplingParameters
from .data.collators import DataCollatorForVisionReward
from .inference.scorer import RewardScorer
from .inference.server_scorer import ServerScorer
from .inference.transformers_sampler import ResponseSampler
from .models.qwen2_5_vl import Qwen2_5_VLForSequenceClassification
from .models.qwen3_vl import Qwen3VLForSequenceClassification
from .prefix_sharing.share_prefixes import share_prefixes, unshare_prefixes
from .training.mpo_trainer import MPOTrainer
from .training.reward_trainer import VisionRewardTrainer


__all__ = [
    "DataCollatorForVisionReward",
    "DatasetArguments",
    "MPOTrainer",
    "Qwen2_5_VLForSequenceClassification",
    "Qwen3VLForSequenceClassification",
    "RecipeParser",
    "ResponseSampler",
    "RewardModelConfig",
    "RewardScorer",
    "SamplingParameters",
    "ServerScorer",
    "VisionModelConfig",
    "VisionRewardModelConfig",
    "VisionRewardTrainer",
    "share_prefixes",
    "unshare_prefixes",
]
