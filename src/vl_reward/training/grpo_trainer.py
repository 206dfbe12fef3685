"""TRL's `GRPOTrainer` on several processes, some of whose prompts have no image, and on videos."""

import functools
import logging
from collections.abc import Iterator

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import BatchFeature
from trl import GRPOConfig, GRPOTrainer

from ..data.encoding import load_columns, render, tokenize
from ..data.messages import as_parts, read_messages
from ..data.splits import with_images
from ..models.repeated_visuals import repeated
from .guards import TrainerGuards
from .trl_corrections import gathered


logger = logging.getLogger(__name__)


class VisionGRPOTrainer(TrainerGuards, GRPOTrainer):
    """
    [`~trl.GRPOTrainer`] whose checkpoints are read back and count only once they are whole, and whose rows may have
    `videos`.

    TRL 1.16 knows images alone. Where a row of a batch has a video, TRL gets its prompts as text. They are tokenized
    here, with their images and videos, and each forward pass on the samples is given those of its rows. The reward
    functions get the rows as they are.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy, with [`share_prefixes`]: it runs the vision tower for text alone, too, for which processes with
            images would wait.
        args ([`~trl.GRPOConfig`]):
            `log_multimodal` is set to `False`: TRL gathers images on the processes that have some, and they would wait
            for the others.
        **kwargs:
            Passed on to [`~trl.GRPOTrainer`].

    Raises:
        ValueError: If there are fewer prompts than TRL samples on at a time, or if rows have videos and `use_vllm` is
            set: TRL gives its vLLM the images alone.
    """

    def __init__(self, model, args: GRPOConfig, **kwargs):
        args.log_multimodal = False
        if isinstance(kwargs.get("train_dataset"), Dataset) and "images" in kwargs["train_dataset"].column_names:
            kwargs["train_dataset"] = with_images(kwargs["train_dataset"], decode=True)
        self.given: list[dict] | None = None  # the rows of a batch with videos
        self.shown: list[dict[str, torch.Tensor]] | None = None  # what the model gets of their images and videos
        self.unasked: Iterator[dict[str, torch.Tensor]] | None = None  # of those whose forward pass is still to come
        super().__init__(model=model, args=args, **kwargs)
        if not args.use_vllm:
            # As TRL does with the image token: a sampled one would mismatch the features.
            self.generation_config.suppress_tokens += [self.model.config.video_token_id]
        elif "videos" in (self.train_dataset.column_names or ()):
            raise ValueError("The rows have `videos`, and TRL gives its vLLM images alone. Set `use_vllm: false`.")
        for one in filter(None, (self.model, self.ref_model)):
            self.accelerator.unwrap_model(one).register_forward_pre_hook(self._show, with_kwargs=True)
        if isinstance(self.train_dataset, Dataset):
            check_batches(len(self.train_dataset), args)
        if not isinstance(self.model, PeftModel):
            # Trainer cannot resume from the hub's layout, see `VisionRewardModel.save_pretrained`.
            self.model.save_pretrained = functools.partial(self.model.save_pretrained, save_original_format=False)

    def _generate_and_score_completions(self, inputs):
        self.given, self.shown = (inputs if any(row.get("videos") for row in inputs) else None), None
        if self.given is not None:
            inputs = [{"prompt": without_pictures(read_messages(row["prompt"], "user"))} for row in inputs]
        # TRL shuffles and splits what is in the batch, lists too.
        return super()._generate_and_score_completions(inputs) | {"shown": self.shown}

    def _tokenize_prompts(self, prompts: list):
        if self.given is None:
            return super()._tokenize_prompts(prompts)
        processor, names = self.processing_class, [f"row {row.get('id', i)}" for i, row in enumerate(self.given)]
        shown = load_columns(processor, names, *([row.get(key) for row in self.given] for key in ("images", "videos")))
        template, texts = {"add_generation_prompt": True, **self.chat_template_kwargs}, []
        for name, row, images, videos in zip(names, self.given, *shown, strict=True):
            texts.append(render(processor, name, read_messages(row["prompt"], "user"), images, videos, **template))
        batch = repeated(tokenize(processor, texts, *shown, padding_side="left"))
        self.shown = rows_of(batch, *shown)
        kept = batch.pop("attention_mask").bool()
        columns = ("input_ids", "mm_token_type_ids")
        ids, types = ([row[mask].tolist() for row, mask in zip(batch.pop(one), kept, strict=True)] for one in columns)
        return ids, None, {**batch, "mm_token_type_ids": types}

    def _calculate_rewards(self, inputs, prompts, *args):
        if self.given is not None:
            inputs, prompts = self.given, [row["prompt"] for row in self.given]
        return super()._calculate_rewards(inputs, prompts, *args)

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.shown = inputs["shown"]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        if self.shown is not None:
            tokens = self.processing_class
            types = (input_ids == tokens.image_token_id).int() + 2 * (input_ids == tokens.video_token_id).int()
            types[:, -logits_to_keep:] = 0
            self.unasked, kwargs["mm_token_type_ids"] = iter(self.shown), types
        inputs = (input_ids, attention_mask, logits_to_keep)
        found = super()._get_per_token_logps_and_entropies(model, *inputs, *args, **kwargs)
        self.unasked = None
        return found

    def _show(self, model: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Give a forward pass the images and videos of its rows, which are the next ones of the batch."""
        if self.unasked is None:
            return None
        rows, device = [next(self.unasked) for _ in kwargs["input_ids"]], kwargs["input_ids"].device
        names = dict.fromkeys(name for row in rows for name in row)
        shown = {name: torch.cat([row[name] for row in rows if name in row]).to(device) for name in names}
        return args, kwargs | shown

    def _generate_single_turn(self, *args, **kwargs):
        with gathered(self.model):
            return super()._generate_single_turn(*args, **kwargs)


def without_pictures(messages: list[dict]) -> list[dict]:
    """`messages` without their images and videos, of which TRL has to know nothing."""
    return [
        {**message, "content": [part for part in as_parts(message["content"]) if part["type"] == "text"]}
        for message in messages
    ]


def rows_of(batch: BatchFeature, images: list[list], videos: list[list]) -> list[dict[str, torch.Tensor]]:
    """
    Divide what a model gets of a batch's images and videos among its rows.

    Args:
        batch (`BatchFeature`):
            What [`tokenize`] gives.
        images (`list[list]`), videos (`list[list]`):
            Those of each row, in the batch's order.

    Returns:
        `list[dict[str, torch.Tensor]]`: the patches, the grids and the seconds per patch of each row's own.
    """
    rows = [{} for _ in images]
    counts = {"image": [len(row) for row in images], "video": [len(row) for row in videos]}
    for kind, patches in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if patches not in batch:
            continue
        grids = batch[f"{kind}_grid_thw"].split(counts[kind])
        pieces = batch[patches].split([int(grid.prod(-1).sum()) for grid in grids])
        for row, grid, piece in zip(rows, grids, pieces, strict=True):
            row |= {f"{kind}_grid_thw": grid, patches: piece} if len(grid) else {}
    if "second_per_grid_ts" in batch:
        for row, seconds in zip(rows, batch["second_per_grid_ts"].split(counts["video"]), strict=True):
            row |= {"second_per_grid_ts": seconds} if len(seconds) else {}
    return rows


def check_batches(n_prompts: int, args: GRPOConfig) -> None:
    """
    Warn of the prompts of an epoch that TRL leaves out, other ones in each.

    Args:
        n_prompts (`int`):
            How many there are.
        args ([`~trl.GRPOConfig`]):
            Say how many are sampled on at a time.

    Raises:
        ValueError: If it leaves out all of them, and would train no step.
    """
    at_a_time = args.generation_batch_size // args.num_generations
    sampled = f"{at_a_time} prompts are sampled at a time: `generation_batch_size` is {args.generation_batch_size:,}, "
    sampled += f"and `num_generations` is {args.num_generations}"
    if n_prompts < at_a_time:
        raise ValueError(
            f"{n_prompts} prompts were given, and {sampled}. No step would be trained. Give more prompts, or lower "
            "`per_device_train_batch_size`, `gradient_accumulation_steps` or `steps_per_generation`."
        )
    if left_out := n_prompts % at_a_time:
        logger.warning(f"Each epoch leaves out {left_out} of {n_prompts:,} prompts, other ones each time: {sampled}.")
