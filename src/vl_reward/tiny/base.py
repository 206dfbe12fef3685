"""
Train the two language models of the embedded world from scratch, with TRL's `SFTTrainer`:

- `base`: answers at least nine of ten held-out questions; stands in for Qwen2.5-VL-7B-Instruct, and the reward model
  starts from it.
- `policy`: an earlier checkpoint of the same run, correct on roughly six of ten; MPO has to improve it.

Both are kept in `checkpoints/` beside this file, with their measured accuracy. To build them again, in about 15 minutes
on 2 cores:

```bash
OMP_NUM_THREADS=1 python -m vl_reward.tiny.base --output_dir outputs/tiny_base
```
"""

import argparse
import itertools
import json
from pathlib import Path
from statistics import fmean

from datasets import IterableDataset
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, set_seed
from trl import SFTConfig, SFTTrainer

from ..arguments.sampling_parameters import SamplingParameters
from ..inference.transformers_sampler import ResponseSampler
from ..labelling.verifiers import exact
from .digits import compose, compose_text, respond
from .processor import build_processor


def build_config(tokenizer) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL's architecture (M-RoPE, grouped-query attention, windowed vision tower) in 1.5 M parameters."""
    token_ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in {
            "image": "image_pad",
            "video": "video_pad",
            "vision_start": "vision_start",
            "vision_end": "vision_end",
        }.items()
    }
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 384,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "initializer_range": 0.1,  # 0.02 is for widths of thousands: at 128 it takes twice the steps
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 128,
            "window_size": 56,
            "fullatt_block_indexes": [2],
            "initializer_range": 0.1,
        },
        tie_word_embeddings=False,
        **token_ids,
    )


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


def train(training_dir: Path, max_steps: int):
    processor = build_processor()
    model = Qwen2_5_VLForConditionalGeneration(build_config(processor.tokenizer))
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
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype="float16")
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/tiny_base"), help="Both models are written here."
    )
    parser.add_argument("--max_steps", type=int, default=2400, help="The base is trained for this many steps.")
    parser.add_argument("--policy_step", type=int, default=540, help="The checkpoint of this step becomes the policy.")
    args = parser.parse_args()

    set_seed(0)
    training_dir = args.output_dir / "training"
    if not (training_dir / f"checkpoint-{args.max_steps}").exists():
        train(training_dir, args.max_steps)
    export(training_dir / f"checkpoint-{args.max_steps}", args.output_dir / "base")
    export(training_dir / f"checkpoint-{args.policy_step}", args.output_dir / "policy")


if __name__ == "__main__":
    main()
