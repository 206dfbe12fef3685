"""
Public preference sets to one curated preference dataset (Skywork-VL Reward, sections 3.1 and 3.2): sources, images,
duplicates, contradictions, ties, contamination, limits, low confidence of a surrogate, balance, mixture.

The embedded world, on a CPU (its sources are made by `python -m vl_reward.tiny.public_sets`):

accelerate launch recipes/prepare_preferences.py

The paper's mixture, on a CPU, too:

accelerate launch recipes/prepare_preferences.py --config recipes/configs/qwen2_5_vl_7b/prepare_preferences.yaml

Reads the sources and benchmarks that the YAML names. Writes the dataset `preferences` (`train`, `test`) with its card,
`audit.json` and `audit.md` (what each step took out and why), `dropped.jsonl`, `quarantine.jsonl` (bad images) and
`repair.jsonl` (pairs of low confidence). The same YAML and inputs give the same bytes.
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
    sources: list[dict] = field(
        default_factory=list, metadata={"help": "The sets of the mixture, each with the keys of `PreferenceSource`."}
    )
    benchmarks: list[dict] = field(
        default_factory=list,
        metadata={"help": "The benchmarks that are kept out: `name`, `path`, and `split` or `image_root` if needed."},
    )
    output_dir: str = field(
        default="outputs/preferences", metadata={"help": "The folder that the result is written to."}
    )
    seed: int = field(default=42, metadata={"help": "The seed that decides which pairs are drawn, and their order."})
    num_proc: int | None = field(default=None, metadata={"help": "The number of processes that read large sources."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "The model whose processor counts tokens."})
    max_pixels: int = field(
        default=VisionModelConfig.max_pixels, metadata={"help": "The pixel budget of an image, as in training."}
    )
    max_tokens: int | None = field(
        default=None, metadata={"help": "The most tokens that a conversation may have, visual tokens included."}
    )
    max_characters: int | None = field(default=None, metadata={"help": "The most characters that a response may have."})
    min_rating_margin: float | None = field(
        default=None, metadata={"help": "The least margin between a set's own ratings of a pair, 0 to 1."}
    )
    drop_duplicates: bool = field(
        default=True, metadata={"help": "Whether pairs that equal or contradict another one are dropped."}
    )
    min_text_similarity: float | None = field(
        default=0.8,
        metadata={"help": "The similarity from which two responses are near-duplicates; `null` keeps them."},
    )
    max_hamming_distance: int = field(
        default=6, metadata={"help": "The number of bits of 64 in which perceptual hashes of one image may differ."}
    )
    scores_file: str | None = field(
        default=None, metadata={"help": "The JSONL file with `id` and `scores` of pairs by a surrogate reward model."}
    )
    min_chosen_score: float | None = field(
        default=None, metadata={"help": "The least score by the surrogate that a chosen response may have."}
    )
    min_score_margin: float | None = field(
        default=None, metadata={"help": "The least margin of the chosen response's score over the rejected one's."}
    )
    max_chosen_first_fraction: float | None = field(
        default=None, metadata={"help": "The largest fraction of a source's pairs whose chosen response came first."}
    )
    max_chosen_longer_fraction: float | None = field(
        default=None, metadata={"help": "The largest fraction of a source's pairs whose chosen response is longer."}
    )
    test_fraction: float = field(
        default=0.01, metadata={"help": "The fraction of the pairs that is held out; no image is on both sides."}
    )

    def __post_init__(self):
        if not self.sources:
            raise ValueError("`sources` is empty: name sets in a YAML, as in configs/tiny/prepare_preferences.yaml.")


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
    curation, to_repair = PairCuration(pairs, inspected, audit), []
    curation.drop_bad_images()
    curation.drop_bad_texts()
    curation.drop_ties(script_args.min_rating_margin)
    curation.drop_outside_limits(script_args.max_tokens, script_args.max_characters)
    if script_args.drop_duplicates:
        curation.drop_contradictions()
        curation.drop_duplicates()
    if script_args.min_text_similarity is not None:
        curation.drop_near_duplicates(script_args.min_text_similarity, script_args.max_hamming_distance)
    for benchmark in benchmarks:
        curation.drop_contaminated(benchmark, sources, script_args.max_hamming_distance)
    if script_args.min_chosen_score is not None or script_args.min_score_margin is not None:
        to_repair = curation.drop_low_confidence(
            script_args.scores_file, script_args.min_chosen_score, script_args.min_score_margin
        )
    curation.balance(script_args.max_chosen_first_fraction, script_args.max_chosen_longer_fraction, script_args.seed)
    curation.draw_mixture(sources, script_args.seed)

    ####################
    # Save
    ####################
    output.save(curation.datasets(script_args.test_fraction, script_args.seed), audit, curation.dropped, to_repair)
    print(f"{len(curation.kept):,} of {len(pairs):,} pairs saved to {script_args.output_dir}; audit.md says why.")


if __name__ == "__main__":
    parser = RecipeParser((PreparationArguments,), __file__, INPUTS)
    main(*parser.parse_args_and_config())
