"""
A reward model in the layout that others read: `vllm`, to be served; `value_head`, as Skywork-VL-Reward-7B and
LLaMA-Factory have it; `native`, as this project saves it. Each is made from any of them.

The embedded world, on a CPU:

accelerate launch recipes/export_reward.py

A 7B reward model, to be served by vLLM:

accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/export_reward.py \
    --config recipes/configs/qwen2_5_vl_7b/export_reward.yaml

The released Skywork-VL-Reward-7B as a checkpoint that stage 1 or stage 2 goes on from:

python recipes/export_reward.py --model_name_or_path Skywork/Skywork-VL-Reward-7B --format native --output_dir skywork

Writes the weights (shard by shard, cut as the source's are), configuration, processor and chat template, `probes.json`
(two conversations with their scores, with which `ServerScorer` compares a server's), and `README.md`, the model card
with the command that serves it. What was written is loaded and gives the source's scores, or the recipe ends in an
error. Nothing is uploaded unless `push_to_hub` says so.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import HfApi

from vl_reward import RecipeParser, RewardScorer
from vl_reward.inference.probes import Probes
from vl_reward.models.export_card import ExportCard
from vl_reward.models.exported_checkpoint import ExportedCheckpoint, Format


INPUTS = ("model_name_or_path",)


@dataclass
class ExportArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "The reward model to export."})
    model_revision: str = field(default="main", metadata={"help": "Its revision on the hub."})
    format: Format = field(default="vllm", metadata={"help": "The layout that it is written in."})
    output_dir: str = field(default="outputs/export_reward", metadata={"help": "The folder that it is written to."})
    dtype: str | None = field(
        default=None, metadata={"help": "The dtype that the probes are scored in. Default: that of the weights."}
    )
    datasets: list[str] = field(default_factory=list, metadata={"help": "Training sets that the model card names."})
    results: list[str] = field(
        default_factory=list, metadata={"help": "Folders of evaluate_reward.py whose numbers the model card shows."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Whether the folder is uploaded, as `hub_model_id`."})
    hub_model_id: str | None = field(default=None, metadata={"help": "The model's name on the hub, `owner/name`."})

    def __post_init__(self):
        if self.model_name_or_path is None:
            raise ValueError("`model_name_or_path` must be given: the reward model to export.")
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("`push_to_hub` needs `hub_model_id`, the name to upload to.")


def main(script_args):
    folder = Path(script_args.output_dir)
    results = {Path(name).name: json.loads((Path(name) / "results.json").read_text()) for name in script_args.results}

    ####################
    # Checkpoint
    ####################
    export = ExportedCheckpoint(script_args.model_name_or_path, script_args.format, script_args.model_revision)
    export.write(folder)

    ####################
    # Probes
    ####################
    dtype = script_args.dtype or str(export.dtype).removeprefix("torch.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measured = {}
    for path in (str(export.source), script_args.output_dir):
        scorer = RewardScorer.from_pretrained(path, dtype=dtype)
        scorer.model.to(device)
        measured[path] = Probes.measured_by(scorer, dtype)
    of_source, probes = measured.values()
    probes.check_source(of_source, folder)
    probes.save(folder)

    ####################
    # Model card
    ####################
    trained = export.source / "eval_results.json"  # the trainer's, where it is beside the weights
    metrics = json.loads(trained.read_text()) if trained.exists() else {}
    card = ExportCard(
        folder=script_args.hub_model_id or script_args.output_dir,
        source=script_args.model_name_or_path,
        format=script_args.format,
        dtype=dtype,
        max_position_embeddings=export.config.text_config.max_position_embeddings,
        datasets=script_args.datasets,
        training_metrics={name: value for name, value in metrics.items() if name in ("eval_accuracy", "eval_margin")},
        results=results,
    )
    text = card.markdown(scorer.processor)
    (folder / "README.md").write_text(text)
    print(text)
    if script_args.push_to_hub:
        api = HfApi()
        api.create_repo(script_args.hub_model_id, exist_ok=True, private=True)
        api.upload_folder(repo_id=script_args.hub_model_id, folder_path=folder)


if __name__ == "__main__":
    main(*RecipeParser((ExportArguments,), __file__, INPUTS).parse_args_and_config())
