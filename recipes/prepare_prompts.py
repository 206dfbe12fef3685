"""
Prompts for sampling, training and evaluation, from public sets, the prompts of preference sets and one's own files:
without duplicates, without what a benchmark holds, and split so that no image is on both sides.

The embedded world, on a CPU (its sources are made by `python -m vl_reward.tiny.public_sets`):

accelerate launch recipes/prepare_prompts.py

MMPR's prompts with their answers, on a CPU, too:

accelerate launch recipes/prepare_prompts.py --config recipes/configs/qwen2_5_vl_7b/prepare_prompts.yaml

Reads the sources and benchmarks that the YAML names. Writes the dataset `prompts` (`train`, `test`) with `prompt`,
`images`, `answer` and `id`, a hash of content; `prompts.json`: how many rows each step left out, and why; and
`refused.jsonl`: the bad rows, each with its id and the reason. The same YAML and inputs give the same bytes.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import PartialState

from vl_reward import RecipeParser
from vl_reward.curation import BenchmarkContent, PromptSet, PromptSource


INPUTS = ()


@dataclass
class PromptArguments:
    sources: list[dict] = field(
        default_factory=list, metadata={"help": "The sets, each with the keys of `PromptSource.from_yaml`."}
    )
    benchmarks: list[dict] = field(
        default_factory=list,
        metadata={"help": "The benchmarks that are kept out: `name`, `path`, and `split` or `image_root` if needed."},
    )
    output_dir: str = field(default="outputs/prompts", metadata={"help": "The folder that the result is written to."})
    seed: int = field(default=42, metadata={"help": "The seed decides which prompts are held out, and their order."})
    num_proc: int | None = field(default=None, metadata={"help": "The number of processes that read large sources."})
    answers_only: bool = field(default=False, metadata={"help": "Prompts without an answer are left out."})
    max_hamming_distance: int = field(
        default=6, metadata={"help": "The number of bits of 64 in which perceptual hashes of one image may differ."}
    )
    test_fraction: float = field(
        default=0.05, metadata={"help": "The fraction of the prompts that is held out; no image is on both sides."}
    )
    max_refused: float = field(
        default=0.01, metadata={"help": "The largest fraction of rows that may be bad. With more, the run stops."}
    )


def main(script_args):
    if not PartialState().is_main_process:
        return  # one process is enough, and starts its own
    output_dir = Path(script_args.output_dir)
    if (output_dir / "prompts").exists() and not (output_dir / "prompts.json").exists():
        raise ValueError(f"{output_dir / 'prompts'} is not from this recipe, and would be replaced. Move it.")

    ####################
    # Sources
    ####################
    sources = [PromptSource.from_yaml(entry) for entry in script_args.sources]
    benchmarks = [BenchmarkContent.from_yaml(entry) for entry in script_args.benchmarks]
    partial = output_dir / ".partial"  # what is in it replaces the former result at the end
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "work").mkdir(parents=True)
    prompts = PromptSet(sources, partial / "work", script_args.num_proc)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in prompts.refused]
    (output_dir / "refused.jsonl").write_text("".join(lines), encoding="utf-8")
    prompts.check_refused(script_args.max_refused)

    ####################
    # Curation
    ####################
    # Edit here: the steps and their order. Each takes from what the ones before left.
    if script_args.answers_only:
        prompts.leave_out_without_answer()
    prompts.leave_out_duplicates()
    for benchmark in benchmarks:
        prompts.leave_out_contaminated(benchmark, script_args.max_hamming_distance)

    ####################
    # Save
    ####################
    splits = prompts.datasets(script_args.test_fraction, script_args.seed)
    splits.save_to_disk(partial / "prompts")
    settings = {key: value for key, value in asdict(script_args).items() if key not in ("output_dir", "num_proc")}
    report = json.dumps(prompts.report | {"settings": settings}, indent=2, ensure_ascii=False)
    shutil.rmtree(output_dir / "prompts", ignore_errors=True)
    (output_dir / "prompts.json").write_text(report + "\n", encoding="utf-8")
    os.replace(partial / "prompts", output_dir / "prompts")
    shutil.rmtree(partial)
    print(report)


if __name__ == "__main__":
    parser = RecipeParser((PromptArguments,), __file__, INPUTS)
    main(*parser.parse_args_and_config())
