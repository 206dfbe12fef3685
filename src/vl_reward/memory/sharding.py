"""How a run divides weights, gradients and optimizer states among its processes."""

import os
from dataclasses import dataclass
from typing import Literal

from accelerate import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import TrainingArguments


@dataclass
class Sharding:
    """
    What one process holds of a model that `processes` of them train.

    Args:
        kind (`str`, *optional*, defaults to `"whole"`):
            `"whole"`, each process holds all, alone or under DDP; `"zero1"`, `"zero2"`, `"zero3"` of DeepSpeed;
            `"fsdp2"`.
        processes (`int`, *optional*, defaults to `1`):
            The number of processes, each with its GPU.
        offload_weights, offload_optimizer (`bool`, *optional*, defaults to `False`):
            Whether they are kept in the host's memory.
        bucket (`int`, *optional*, defaults to `500_000_000`):
            Elements of a gradient bucket of DeepSpeed, by its default.
        live_weights (`int`, *optional*, defaults to `1_000_000_000`):
            Elements that ZeRO-3 keeps gathered at a time, by DeepSpeed's default.
    """

    kind: Literal["whole", "zero1", "zero2", "zero3", "fsdp2"] = "whole"
    processes: int = 1
    offload_weights: bool = False
    offload_optimizer: bool = False
    bucket: int = 500_000_000
    live_weights: int = 1_000_000_000

    @classmethod
    def from_training_args(cls, args: TrainingArguments) -> "Sharding":
        """Read what `accelerate launch` was given, which the launched process sees in its environment."""
        if (plugin := args.deepspeed_plugin) is not None:
            given = plugin.hf_ds_config.config["zero_optimization"]
            numbers = {"bucket": "reduce_bucket_size", "live_weights": "stage3_max_live_parameters"}
            numbers = {name: given.get(key) for name, key in numbers.items()}
            return cls(
                f"zero{plugin.zero_stage}" if plugin.zero_stage else "whole",
                args.world_size,
                plugin.offload_param_device not in (None, "none"),
                plugin.offload_optimizer_device not in (None, "none"),
                **{name: int(value) for name, value in numbers.items() if value not in (None, "auto")},
            )
        if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            offload = isinstance(FullyShardedDataParallelPlugin().cpu_offload, CPUOffloadPolicy)
            return cls("fsdp2", args.world_size, offload, offload)
        return cls(processes=args.world_size)

    def __str__(self):
        names = {"whole": "DDP" if self.processes > 1 else "one process", "fsdp2": "FSDP2"}
        name = names.get(self.kind, self.kind.replace("zero", "ZeRO-"))
        parts = [f"{name} on {self.processes} GPUs" if self.processes > 1 else name]
        parts += ["weights offloaded"] * self.offload_weights + ["optimizer offloaded"] * self.offload_optimizer
        return ", ".join(parts)

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed divides the model."""
        return self.kind.startswith("zero")

    @property
    def weights(self) -> float:
        """The part of the weights that a process keeps."""
        return 1 / self.processes if self.kind in ("zero3", "fsdp2") else 1.0

    @property
    def gradients(self) -> float:
        """The part of the gradients that a process keeps until the step."""
        return 1 / self.processes if self.kind in ("zero2", "zero3", "fsdp2") else 1.0

    @property
    def optimizer(self) -> float:
        """The part of the optimizer's states that a process keeps."""
        return 1.0 if self.kind == "whole" else 1 / self.processes
