"""
Preference pairs for prompts without an answer (Dropout-NTP, MPO section 3): the policy's own response against its first
half, continued without the image.

The embedded world, on a CPU:

accelerate launch recipes/dropout_negatives.py

Qwen2.5-VL-7B, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/dropout_negatives.py \
    --config recipes/configs/qwen2_5_vl_7b/dropout_negatives.yaml

Reads the candidates of sample_responses.py and the policy that made them. Writes `samples` (shards, as they are made: a
stopped run goes on), the dataset `preferences` in TRL's vision-preference format, and `negatives.json`.
"""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Image, List, load_from_disk
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, set_seed
from trl import ScriptArguments

from vl_reward import RecipeParser, ResponseSampler, VisionModelConfig
from vl_reward.inference.sample_shards import SampleShards


INPUTS = ("model_name_or_path", "dataset_name")


@dataclass
class DropoutArguments(ScriptArguments):
    output_dir: str = field(default="outputs/dropout_negatives", metadata={"help": "Where to write the pairs."})
    kept_share: float = field(default=0.5, metadata={"help": "Of a response's words. MPO: 0.25, 0.75 are worse."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Longest continuation."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    batch_size: int = field(default=64, metadata={"help": "Responses generated at a time, per process."})
    shard_size: int = field(default=256, metadata={"help": "Prompts sampled, and lost by a stop, at a time."})
    seed: int = field(default=0, metadata={"help": "Seed; each shard adds its number."})


def beginning(response, share):
    """The first words of a response, without the blanks after them."""
    words = re.findall(r"\S+\s*", response)
    return "".join(words[: int(len(words) * share)]).rstrip()


def without_images(prompt):
    """A prompt's messages as text alone."""
    return [
        {**message, "content": [part for part in message["content"] if part["type"] == "text"]}
        if isinstance(message["content"], list)
        else message
        for message in prompt
    ]


def main(script_args, model_args):
    state = PartialState(cpu=not torch.cuda.is_available())

    ####################
    # Model & Processor
    ####################
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
    ).to(state.device)
    processor = AutoProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, max_pixels=model_args.max_pixels
    )
    sampler = ResponseSampler(
        model, processor, script_args.max_new_tokens, script_args.temperature, batch_size=script_args.batch_size
    )

    ####################
    # Dataset
    ####################
    candidates = load_from_disk(script_args.dataset_name).cast_column("images", List(Image(decode=False)))
    share, chosen = script_args.kept_share, []
    for texts, reasons in zip(candidates["responses"], candidates["finish_reasons"], strict=True):
        # Edit here: which response is the chosen one.
        finished = [text for text, reason in zip(texts, reasons, strict=True) if reason == "stop"]
        chosen.append(next((text for text in finished if beginning(text, share)), None))
    usable = [i for i, images in enumerate(candidates["images"]) if images and chosen[i] is not None]
    begun = [beginning(chosen[i], share) for i in usable]
    prompts = [
        without_images(candidates[i]["prompt"]) + [{"role": "assistant", "content": text}]
        for i, text in zip(usable, begun, strict=True)
    ]

    ####################
    # Sampling
    ####################
    output_dir, no_images = Path(script_args.output_dir), [[] for _ in prompts]
    fingerprint = sampler.fingerprint(seed=script_args.seed)
    shards = SampleShards(output_dir / "samples", fingerprint, prompts, no_images, script_args.shard_size)
    for number, *shard in shards.pending(state.process_index, state.num_processes):
        set_seed(script_args.seed + number)
        shards.write(number, *sampler(*shard))
    state.wait_for_everyone()
    if not state.is_main_process:
        return

    ####################
    # Save
    ####################
    counts = Counter({"no image, or no finished response": len(candidates) - len(usable)})
    rows, columns = [], {"chosen": [], "rejected": []}
    for i, text, sample in zip(usable, begun, shards.read(), strict=True):
        rejected = text + sample["responses"][0]
        if sample["finish_reasons"][0] != "stop" or rejected == chosen[i]:
            counts["the continuation is cut off" if rejected != chosen[i] else "the same without the image"] += 1
            continue
        counts["pairs"] += 1
        rows.append(i)
        for side, response in (("chosen", chosen[i]), ("rejected", rejected)):
            columns[side].append([{"role": "assistant", "content": response}])
    report = {"prompts": len(candidates), **counts, "policy": model_args.model_name_or_path, **asdict(script_args)}
    (output_dir / "negatives.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    if not rows:
        raise ValueError("No prompt gave a pair: without the image the policy says the same, or does not finish.")
    pairs = candidates.select(rows).select_columns(["id", "prompt", "images"]).cast_column("images", List(Image()))
    for side, responses in columns.items():
        pairs = pairs.add_column(side, responses)
    pairs.save_to_disk(output_dir / "preferences")


if __name__ == "__main__":
    parser = RecipeParser((DropoutArguments, VisionModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
