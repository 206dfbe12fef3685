"""
Public preference sets to one curated preference dataset (Skywork-VL Reward, sections 3.1 and 3.2): sources, images,
duplicates, contradictions, ties, contamination, limits, a surrogate's doubts, balance, mixture.

The embedded world, on a CPU (its sources are made by `python -m vl_reward.tiny.public_sets`):

accelerate launch recipes/prepare_preferences.py

The paper's mixture, on a CPU, too:

accelerate launch recipes/prepare_preferences.py --config recipes/configs/qwen2_5_vl_7b/prepare_preferences.yaml

Reads the sources and benchmarks that the YAML names. Writes the dataset `preferences` (`train`, `test`) with its card,
`audit.json` and `audit.md` (what each step took out and why), `dropped.jsonl`, `quarantine.jsonl` (bad images) and
`repair.jsonl` (pairs that the surrogate doubts). The same YAML and inputs give the same bytes.
"""

from dataclasses import asdict, dataclass, field
from importlib.metadata import version

from accelerate import PartialState
from datasets import concatenate_datasets
from transformers import AutoProcessor

from vl_reward import RecipeParser, VisionModelConfig
from vl_reward.curation import (
    BenchmarkContent,
    CurationAudit,
    OutputFolder,
    PairCuration,
    PairInspection,
    PreferenceSource,
)


INPUTS = ("model_name_or_path", "scores_file")


@dataclass
class PreparationArguments:
    sources: list[dict] = field(default_factory=list, metadata={"help": "The mixture: see `PreferenceSource`."})
    benchmarks: list[dict] = field(
        default_factory=list, metadata={"help": "Kept out of training: `name`, `path`, and `image_root` if needed."}
    )
    output_dir: str = field(default="outputs/preferences", metadata={"help": "Where to write."})
    seed: int = field(default=42, metadata={"help": "Which pairs are drawn, and their order."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes for large sources."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Its processor counts tokens."})
    max_pixels: int = field(
        default=VisionModelConfig.max_pixels, metadata={"help": "Pixel budget of an image, as in training."}
    )
    max_tokens: int | None = field(default=None, metadata={"help": "Longest conversation, visual tokens included."})
    max_characters: int | None = field(default=None, metadata={"help": "Longest response."})
    min_rating_gap: float | None = field(default=None, metadata={"help": "Least gap of a set's own ratings, 0 to 1."})
    drop_duplicates: bool = field(default=True, metadata={"help": "Drop equal pairs, and those that contradict."})
    min_text_similarity: float | None = field(default=0.8, metadata={"help": "Near-duplicates; `null` keeps them."})
    max_image_bits: int = field(default=6, metadata={"help": "Bits of 64 in which hashes of one image may differ."})
    scores_file: str | None = field(default=None, metadata={"help": "A surrogate's `id` and `scores`, JSONL."})
    min_chosen_score: float | None = field(default=None, metadata={"help": "Least score of a chosen response."})
    min_score_gap: float | None = field(default=None, metadata={"help": "Least score above the rejected response."})
    max_first_share: float | None = field(default=None, metadata={"help": "Of pairs whose chosen one came first."})
    max_longer_share: float | None = field(default=None, metadata={"help": "Of pairs whose chosen one is longer."})
    test_share: float = field(default=0.01, metadata={"help": "Held out, by image."})


def main(script_args):
    if not PartialState().is_main_process:
        return  # one process is enough, and starts its own

    ####################
    # Sources
    ####################
    sources = [PreferenceSource.from_yaml(entry) for entry in script_args.sources]
    benchmarks = [BenchmarkContent.from_yaml(entry) for entry in script_args.benchmarks]
    settings = {key: value for key, value in asdict(script_args).items() if key not in ("output_dir", "num_proc")}
    settings["versions"] = {
        package: version(package) for package in ("datasets", "pillow", "datasketch", "imagehash", "transformers")
    }
    audit, output = CurationAudit(settings), OutputFolder(script_args.output_dir)
    pairs = concatenate_datasets([source.load(output.work, audit, script_args.num_proc) for source in sources])

    ####################
    # Inspection
    ####################
    processor = None
    if script_args.model_name_or_path:
        processor = AutoProcessor.from_pretrained(script_args.model_name_or_path, max_pixels=script_args.max_pixels)
    inspected = PairInspection(processor, script_args.num_proc)(pairs, output.work)

    ####################
    # Curation
    ####################
    # Edit here: the steps and their order. Each takes from what the ones before left.
    curation, doubtful = PairCuration(pairs, inspected, audit), []
    curation.drop_bad_images()
    curation.drop_bad_texts()
    curation.drop_ties(script_args.min_rating_gap)
    curation.drop_outside_limits(script_args.max_tokens, script_args.max_characters)
    if script_args.drop_duplicates:
        curation.drop_contradictions()
        curation.drop_duplicates()
    if script_args.min_text_similarity is not None:
        curation.drop_near_duplicates(script_args.min_text_similarity, script_args.max_image_bits)
    for benchmark in benchmarks:
        curation.drop_contaminated(benchmark, sources, script_args.max_image_bits)
    if script_args.min_chosen_score is not None or script_args.min_score_gap is not None:
        doubtful = curation.drop_doubtful(
            script_args.scores_file, script_args.min_chosen_score, script_args.min_score_gap
        )
    curation.balance(script_args.max_first_share, script_args.max_longer_share, script_args.seed)
    curation.draw_mixture(sources, script_args.seed)

    ####################
    # Save
    ####################
    output.save(curation.datasets(script_args.test_share, script_args.seed), audit, curation.dropped, doubtful)
    print(f"{len(curation.kept):,} of {len(pairs):,} pairs saved to {script_args.output_dir}; audit.md says why.")


if __name__ == "__main__":
    parser = RecipeParser((PreparationArguments,), __file__, INPUTS)
    main(*parser.parse_args_and_config())
