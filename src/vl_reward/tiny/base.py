"""
Train the two language models of the embedded world from scratch, with TRL's `SFTTrainer`, in either family:

- `base`: answers at least nine of ten held-out questions; stands in for Qwen2.5-VL-7B-Instruct or Qwen3-VL-8B-Instruct,
  and the reward model starts from it.
- `policy`: an earlier checkpoint of the same run, correct on six to seven of ten; MPO has to improve it.

Both are kept in `checkpoints/` beside this file, with their measured accuracy. To build them again, in about 15 minutes
a family on 2 cores:

```bash
OMP_NUM_THREADS=1 python -m vl_reward.tiny.base --output_dir outputs/tiny_base
OMP_NUM_THREADS=1 python -m vl_reward.tiny.base --output_dir outputs/tiny_base_qwen3_vl --family qwen3_vl
```
"""

import argparse
import itertools
import json
from pathlib import Path
from statistics import fmean

from datasets import IterableDataset
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed
from trl import SFTConfig, SFTTrainer

from ..arguments.sampling_parameters import SamplingParameters
from ..inference.transformers_sampler import ResponseSampler
from ..labelling.verifiers import exact
from .architectures import FAMILIES, build_config
from .digits import compose, compose_text, respond
from .processor import build_processor


POLICY_STEP = {"qwen2_5_vl": 540, "qwen3_vl": 500}


def conversations():
    """Three of four rows ask about images, one is text only."""
    images, texts = compose("sft", seed=0), compose_text(seed=1)
    for i in itertools.count():
        row = next(texts) if i % 4 == 3 else next(images)
        yield {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": respond(row["first"], row["second"], row["answer"])}],
            "images": row["images"],
        }


def train(training_dir: Path, max_steps: int, family: str):
    """Train a policy of `family` from scratch on composed questions. Checkpoints go to `training_dir`."""
    processor = build_processor(family)
    model = AutoModelForImageTextToText.from_config(build_config(processor.tokenizer, family))
    print(f"{model.num_parameters():,} parameters")
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(training_dir),
            max_steps=max_steps,
            per_device_train_batch_size=32,
            learning_rate=1.5e-3,
            lr_scheduler_type="cosine",
            warmup_steps=30,
            weight_decay=0.05,
            adam_beta2=0.98,
            max_length=None,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            save_steps=20,
            logging_steps=20,
            save_only_model=True,
            dataloader_num_workers=1,
            report_to="none",
            seed=0,
        ),
        train_dataset=IterableDataset.from_generator(conversations),
        processing_class=processor,
    )
    trainer.train()


def export(checkpoint: Path, path: Path) -> None:
    """Keep a checkpoint in float16, and beside it its greedy accuracy on 1,500 held-out questions."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="float16")
    processor = AutoProcessor.from_pretrained(checkpoint)
    model.save_pretrained(path)
    processor.save_pretrained(path)

    rows = list(itertools.islice(compose("test", seed=1), 1500))
    greedy = SamplingParameters(max_new_tokens=24, temperature=0.0, batch_size=128)
    sampler = ResponseSampler(model.float(), processor, greedy)
    responses, _ = sampler([row["question"] for row in rows], [row["images"] for row in rows])
    accuracy = fmean(bool(exact(samples[0], row["answer"])) for samples, row in zip(responses, rows, strict=True))
    result = {"step": int(checkpoint.name.split("-")[-1]), "greedy_accuracy": accuracy, "n": len(rows)}
    (path / "accuracy.json").write_text(json.dumps(result, indent=2) + "\n")
    print(path, result)


def main():
    """Train the kept models anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/tiny_base"), help="Both models are written here."
    )
    parser.add_argument("--max_steps", type=int, default=2400, help="The base is trained for this many steps.")
    parser.add_argument("--policy_step", type=int, help="The checkpoint of this step becomes the policy.")
    parser.add_argument("--family", choices=FAMILIES, default="qwen2_5_vl", help="The models are of this family.")
    args = parser.parse_args()

    set_seed(0)
    training_dir = args.output_dir / "training"
    if not (training_dir / f"checkpoint-{args.max_steps}").exists():
        train(training_dir, args.max_steps, args.family)
    export(training_dir / f"checkpoint-{args.max_steps}", args.output_dir / "base")
    policy_step = args.policy_step or POLICY_STEP[args.family]
    export(training_dir / f"checkpoint-{policy_step}", args.output_dir / "policy")


if __name__ == "__main__":
    main()
