"""
Preference pairs for prompts without an answer (Dropout-NTP, MPO section 3): the policy's own response against its first
half, continued without its images and videos.

The embedded world, on a CPU:

accelerate launch recipes/dropout_negatives.py

Qwen2.5-VL-7B, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/dropout_negatives.py \
    --config recipes/configs/qwen2_5_vl_7b/dropout_negatives.yaml

Reads the candidates of sample_responses.py and the policy that made them. Writes `samples` (shards, as they are made: a
stopped run goes on), the dataset `preferences` in TRL's vision-preference format, `negatives.json` and `refused.jsonl`:
candidates that cannot be used.
"""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Image, List
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from vl_reward import DatasetArguments, RecipeParser, ResponseSampler, SamplingParameters, VisionModelConfig
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.inference.resumable_store import ResumableStore
from vl_reward.preflight.row_checks import ResponsesCheck
from vl_reward.preflight.usable_rows import UsableRows


INPUTS = ("model_name_or_path", "dataset_name")


@dataclass
class DropoutArguments(DatasetArguments):
    output_dir: str = field(
        default="outputs/dropout_negatives", metadata={"help": "The folder that the pairs are written to."}
    )
    kept_fraction: float = field(
        default=0.5,
        metadata={"help": "The fraction of a response's words that is kept. In MPO 0.25 and 0.75 are worse."},
    )
    shard_size: int = field(default=256, metadata={"help": "A stop loses the work on this many prompts at most."})
    seed: int = field(default=0, metadata={"help": "The random seed. Shard i uses seed + i."})


def beginning(response, fraction):
    """The first words of a response, without the blanks after them."""
    words = re.findall(r"\S+\s*", response)
    return "".join(words[: int(len(words) * fraction)]).rstrip()


def as_text(prompt):
    """A prompt's messages without the places of its images and videos."""
    return [
        {**message, "content": [part for part in message["content"] if part["type"] == "text"]}
        if isinstance(message["content"], list)
        else message
        for message in prompt
    ]


def main(script_args, sampling, model_args):
    state = PartialState(cpu=not torch.cuda.is_available())

    ####################
    # Model & Processor
    ####################
    model = AutoModelForImageTextToText.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
    ).to(state.device)
    processor = AutoProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, max_pixels=model_args.image_pixels
    )
    sampler = ResponseSampler(model, processor, sampling)

    ####################
    # Dataset
    ####################
    dataset = NamedDataset(script_args.dataset_name, columns=script_args.columns)
    candidates, output_dir = dataset.split(script_args.dataset_train_split), Path(script_args.output_dir)
    if "finish_reasons" not in candidates.column_names:
        state.print("The candidates have no `finish_reasons`: every response counts as finished.")
    check = ResponsesCheck(processor, empty_ones=True)
    checked = UsableRows(candidates, check, output_dir, script_args.max_refused)
    candidates, fraction, chosen = checked.rows, script_args.kept_fraction, []
    shown = [name for name in ("images", "videos") if name in candidates.column_names]
    for row in candidates.remove_columns(shown):
        # Edit here: which response is the chosen one.
        ends = row.get("finish_reasons") or ["stop"] * len(row["responses"])
        finished = [text for text, end in zip(row["responses"], ends, strict=True) if end == "stop"]
        chosen.append(next((text for text in finished if beginning(text, fraction)), None))
    seen = [any(row.values()) for row in candidates.select_columns(shown)]
    usable = [i for i, text in enumerate(chosen) if seen[i] and text is not None]
    begun = [beginning(chosen[i], fraction) for i in usable]
    prompts = [
        {"prompt": [*as_text(candidates[i]["prompt"]), {"role": "assistant", "content": text}], "images": []}
        for i, text in zip(usable, begun, strict=True)
    ]

    ####################
    # Sampling
    ####################
    fingerprint, places = sampler.fingerprint(seed=script_args.seed), [checked.places[i] for i in usable]
    store = ResumableStore(output_dir / "samples", fingerprint, prompts, script_args.shard_size, places=places)
    for number, rows in store.pending():
        set_seed(script_args.seed + number)
        responses, finish_reasons = sampler([row["prompt"] for row in rows], [row["images"] for row in rows])
        store.write(number, responses=responses, finish_reasons=finish_reasons)
    if not state.is_main_process:
        return state.destroy_process_group()  # an abort at its end would take the process that saves along

    ####################
    # Save
    ####################
    counts = Counter({"no image or video, or no finished response": len(candidates) - len(usable)})
    rows, columns = [], {"chosen": [], "rejected": []}
    for i, text, sample in zip(usable, begun, store.read(), strict=True):
        rejected = text + sample["responses"][0]
        if sample["finish_reasons"][0] != "stop" or rejected == chosen[i]:
            counts["the continuation is cut off" if rejected != chosen[i] else "the same without the images"] += 1
            continue
        counts["pairs"] += 1
        rows.append(i)
        for side, response in (("chosen", chosen[i]), ("rejected", rejected)):
            columns[side].append([{"role": "assistant", "content": response}])
    report = {"prompts": len(candidates), "refused_rows": len(checked.refused), **counts}
    report |= {"policy": model_args.model_name_or_path}
    report |= asdict(script_args) | asdict(sampling)
    (output_dir / "negatives.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    if not rows:
        raise ValueError("No prompt gave a pair: without its images the policy says the same, or does not finish.")
    pairs = candidates.select(rows).select_columns(["id", "prompt", *shown]).cast_column("images", List(Image()))
    for side, responses in columns.items():
        pairs = pairs.add_column(side, responses)
    pairs.save_to_disk(output_dir / "preferences")


if __name__ == "__main__":
    parser = RecipeParser((DropoutArguments, SamplingParameters, VisionModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
