"""What a training run keeps in memory from its first step to its last."""

from dataclasses import dataclass

from transformers import TrainingArguments

from .sharding import Sharding
from .unloaded_model import Weight


@dataclass
class HeldMemory:
    """
    Args:
        weights (`list[Weight]`):
            The model's.
        sharding ([`Sharding`]):
            How they are divided.
        training_args ([`~transformers.TrainingArguments`]):
            For the precision and the optimizer.
        has_reference (`bool`):
            Whether there is a second model of the same weights, which is not trained.
    """

    weights: list[Weight]
    sharding: Sharding
    training_args: TrainingArguments
    has_reference: bool

    def parts(self) -> dict[str, float]:
        """Bytes, by name."""
        sharding, trained = self.sharding, self.trained
        kept = 0.0 if sharding.offload_weights else sharding.weights
        parts = {"weights": kept * sum(self.size(weight, weight.is_trained) for weight in self.weights)}
        if self.has_reference:
            parts["reference model"] = kept * sum(self.size(weight, False) for weight in self.weights)
        if sharding.is_deepspeed:  # also where it trains in float32
            parts["DeepSpeed's float32 weights"] = 4 * trained * self.states_kept
        parts["optimizer states"] = self.optimizer_states() * self.states_kept
        if sharding.kind == "whole" and sharding.processes > 1:
            parts["DDP's gradient buckets"] = sum(w.numel * w.size for w in self.weights if w.is_trained)
        if sharding.kind in ("zero2", "zero3"):
            parts["DeepSpeed's gradient bucket"] = min(sharding.bucket, trained) * (2 if self.training_args.bf16 else 4)
        return parts

    @property
    def trained(self) -> int:
        """Elements that are trained."""
        return sum(weight.numel for weight in self.weights if weight.is_trained)

    @property
    def states_kept(self) -> float:
        """The part of the optimizer's states that a GPU keeps."""
        return 0.0 if self.sharding.offload_optimizer else self.sharding.optimizer

    def size(self, weight: Weight, is_trained: bool) -> float:
        """
        Bytes of a weight in a model that is trained (`is_trained`) or not. DeepSpeed keeps weights in bfloat16. FSDP2
        keeps trained ones in float32, and computes in bfloat16.
        """
        if weight.is_quantized or self.sharding.kind == "whole" or not self.training_args.bf16:
            return weight.numel * weight.size
        return weight.numel * (2 if self.sharding.is_deepspeed else 4 if is_trained else weight.size)

    def optimizer_states(self) -> float:
        """
        Bytes of the moments of all processes: two of 8 bits, none for SGD and Adafactor, and else two in the dtype of
        the weights, which is float32 where they are sharded.
        """
        optimizer = str(self.training_args.optim).lower()
        if "8bit" in optimizer:
            return 2.0 * self.trained
        if "sgd" in optimizer or "adafactor" in optimizer:
            return 0.0
        is_whole = self.sharding.kind == "whole"  # else the optimizer's weights are in float32
        return 2.0 * sum(w.numel * (w.size if is_whole else 4) for w in self.weights if w.is_trained)
