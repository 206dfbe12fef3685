"""What a recipe needs of a GPU's memory: `--estimate true` prints it before anything is loaded."""

import functools
from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, TrainingArguments
from trl import DPOConfig, GRPOConfig

from ..arguments.model_config import VisionModelConfig
from .held_memory import HeldMemory
from .micro_batch import MicroBatch
from .sharding import Sharding
from .training_step import TrainingStep
from .unloaded_model import UnloadedModel


GIB = 2**30


class MemoryEstimate:
    """
    The peak of a GPU's memory in a training run, and what it is made of, in bytes. Printed, it is a table in GiB.

    The model is built from the checkpoint's config without weights, with the recipe's frozen parts and its adapter. A
    forward and a backward pass run on it that compute shapes alone, and all that is alive is added up.

    Args:
        model_class (`type`):
            The auto class that the recipe loads with.
        training_args ([`~transformers.TrainingArguments`]), model_args ([`VisionModelConfig`]):
            The recipe's.
        freeze (`Callable`, *optional*):
            The recipe's: `freeze(model, model_args)` freezes what is not trained of a model.
        reward_model (`str`, *optional*):
            A checkpoint that scores the policy's samples, whole on each GPU.
        sharding ([`Sharding`], *optional*):
            By default what the process was launched with.
        on_gpu (`bool`, *optional*):
            By default whether the process has one.
    """

    def __init__(
        self,
        model_class: type,
        training_args: TrainingArguments,
        model_args: VisionModelConfig,
        freeze: Callable | None = None,
        reward_model: str | None = None,
        sharding: Sharding | None = None,
        on_gpu: bool | None = None,
    ):
        self.training_args, self.model_args, self.reward_model = training_args, model_args, reward_model
        self.sharding = sharding or Sharding.from_training_args(training_args)
        self.on_gpu = training_args.device.type == "cuda" if on_gpu is None else on_gpu
        path, revision = model_args.model_name_or_path, model_args.model_revision
        self.config = AutoConfig.from_pretrained(path, revision=revision)
        dtype = self.config.dtype if model_args.dtype in (None, "auto") else model_args.dtype
        self.dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype or "float32")
        self.batch = MicroBatch.from_arguments(training_args, model_args, self.config)
        self.is_converted = training_args.bf16 and self.sharding.kind != "whole"
        bits = 4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else None
        # as `restore_full_modules` does
        trains_in = torch.float32 if training_args.bf16 else None if bits is None else self.dtype
        self.model = UnloadedModel(
            model_class,
            self.config,
            self.dtype,
            "eager" if model_args.attn_implementation == "eager" else "sdpa",
            self.batch.is_shared,
            functools.partial(freeze, model_args=model_args) if freeze else None,
            model_args.peft_config,
            bits,
            torch.bfloat16 if self.is_converted else None,
            drops_out=not training_args.disable_dropout,
            trains_in=trains_in if model_args.use_peft else None,
        )
        self.held = HeldMemory(self.model.weights, self.sharding, training_args, self.has_reference)

    @property
    def has_reference(self) -> bool:
        """Whether a reference model is held beside the policy."""
        args, is_adapted = self.training_args, self.model_args.use_peft
        if isinstance(args, GRPOConfig):
            return args.beta > 0 and not is_adapted
        return isinstance(args, DPOConfig) and not is_adapted and not args.precompute_ref_log_probs

    @property
    def element(self) -> int:
        """Bytes of a number that is computed with."""
        return 2 if self.training_args.bf16 else 4

    @functools.cached_property
    def peak(self) -> float:
        """Bytes when most is there, with the gradient checkpointing that is set."""
        return self.column(bool(self.training_args.gradient_checkpointing))["peak"]

    def column(self, checkpointing: bool) -> dict[str, float]:
        """What is there when most is, by name, with or without gradient checkpointing, and each phase's peak."""
        sharding, args = self.sharding, self.training_args
        step = TrainingStep(self.model, self.batch, args.bf16 and not self.is_converted, self.on_gpu)
        live = step.run(checkpointing)
        # FSDP2 adds bfloat16 gradients to float32 ones.
        kept = sharding.gradients * (2 if sharding.kind == "fsdp2" and self.is_converted else 1)
        kept = 0.0 if sharding.offload_optimizer and sharding.is_deepspeed else kept
        gradients, activations = live.peak(kept)
        if args.gradient_accumulation_steps > 1 or sharding.kind == "zero3":  # they are there from the start
            gradients, activations = kept * live.gradients, live.peak(0.0)[1]
        parts = self.held.parts()
        if self.reward_model is not None:
            parts["reward model"] = self.reward_weights()
        held, gathered = sum(parts.values()), self.gathered_weights()
        update = 4 * self.held.trained * self.held.states_kept if sharding.is_deepspeed else 0.0
        phases = {"forward and backward pass": held + gathered + gradients + activations}
        phases["optimizer step"] = held + kept * live.gradients + update
        if isinstance(args, GRPOConfig):
            phases["sampling"] = held + self.sampling()
        return {
            **parts,
            "gathered weights": gathered,
            "gradients": gradients,
            "activations and workspaces": activations,
            "  of these, images": step.after_images,
            "  of these, decoder": step.after_decoder - step.after_images,
            "  of these, vocabulary logits or score": step.head_peak,
            **{f"peak in the {name}": size for name, size in phases.items()},
            "peak": max(phases.values()),
        }

    def gathered_weights(self) -> float:
        """Weights of other processes that a pass keeps at a time, and those of 4 or 8 bits that it unpacks."""
        weights = self.model.weights
        unpacked = max((weight.numel for weight in weights if weight.is_quantized), default=0)
        whole = sum(weight.numel for weight in weights if not weight.is_quantized)
        gathered = {"zero3": min(whole, self.sharding.live_weights), "fsdp2": 2 * self.model.largest_layer}
        return (unpacked + gathered.get(self.sharding.kind, 0)) * self.element

    def reward_weights(self) -> float:
        """Bytes of the weights of `reward_model`, in the dtype that the recipe loads it in."""
        config = AutoConfig.from_pretrained(self.reward_model)
        dtype = torch.bfloat16 if self.training_args.bf16 else torch.float32
        weights = UnloadedModel(AutoModelForSequenceClassification, config, dtype).weights
        return sum(weight.numel * weight.size for weight in weights)

    def sampling(self) -> float:
        """The policy's weights, whole, and the keys and values of the samples."""
        args, text = self.training_args, self.config.text_config
        rows = args.generation_batch_size // args.world_size
        head = text.to_dict().get("head_dim") or text.hidden_size // text.num_attention_heads  # Qwen3's is given
        cache = rows * self.batch.row_length * text.num_hidden_layers * 2 * text.num_key_value_heads * head
        gathered = sum(weight.numel for weight in self.model.weights) * (1 - self.sharding.weights)
        return (gathered + (0 if args.use_vllm else cache)) * self.element

    def __str__(self):
        chosen = bool(self.training_args.gradient_checkpointing)
        columns = [self.column(chosen), self.column(not chosen)]
        heads = [f"{'with' if checkpointing else 'without'} checkpointing" for checkpointing in (chosen, not chosen)]
        width = max(map(len, columns[0])) + 2
        lines = [
            f"Memory of {'a GPU' if self.on_gpu else 'a process'} in GiB for {self.model_args.model_name_or_path}, "
            f"{self.sharding}. No model was loaded.",
            "",
            f"{'':{width}}{heads[0] + ' (set)':>30}{heads[1]:>30}",
            *(f"{key:{width}}" + "".join(f"{column[key] / GIB:30.2f}" for column in columns) for key in columns[0]),
            "",
            "Assumed:",
        ]
        return "\n".join([*lines, *(f"- {sentence}" for sentence in self.assumptions())])

    def assumptions(self) -> list[str]:
        """What the numbers hold for, a sentence each."""
        args, batch = self.training_args, self.batch
        limit = "`max_completion_length`" if isinstance(args, GRPOConfig) else "what `max_length` leaves"
        is_limited = args.max_completion_length if isinstance(args, GRPOConfig) else args.max_length
        left = f", which is {limit}" if is_limited else ""
        sentences = [
            f"A process computes {batch.rows} rows at a time. Each has {batch.image_tokens:,} tokens of an image or a "
            f"video, {batch.text_tokens:,} others of its prompt, and {batch.response_tokens:,} of a response{left}.",
            f"A prompt and its image are computed {'once' if batch.is_shared else 'for each response'}.",
            f"Weights are loaded in {self.dtype}. Matrix products are in {'bfloat16' if args.bf16 else 'float32'}.",
            "Attention keeps no scores, unless it is eager.",
            "Not counted: CUDA's context and libraries (about 1 GiB), fragmentation, evaluation, loading and saving.",
        ]
        if isinstance(args, DPOConfig) and args.precompute_ref_log_probs:
            sentences.append("The reference model is let go before training.")
        if isinstance(args, GRPOConfig) and args.use_vllm:
            sentences.append("What vLLM takes for itself is not counted.")
        if "paged" in str(args.optim).lower():
            sentences.append("Paged optimizer states are on the GPU.")
        return sentences
