"""
This project beside what else can be installed with it: the same rows, weights and settings, in turns.

- MPO: a forward and a backward pass, live reference included, of `trl` ([`~trl.DPOTrainer`] with MPO's three losses
  and its own collator), of `ours` ([`MPOTrainer`] and `share_prefixes`), and of `ours, ahead`, whose reference was
  computed before.
- Scoring K responses, by `value head` (a causal LM and a value head, as TRL's former
  `AutoModelForCausalLMWithValueHead` computed them, the vocabulary's logits included), by `value head, no logits`, and
  by `ours`.

```bash
python bench/peers.py --output_dir docs/peers
```

The vocabulary is Qwen's, of 151,936 words. The decoder and the vision tower are those of the embedded world, 128 and 96
wide, so that the head is most of everyone's work. Responses have equal lengths: TRL's SFT term is then the paper's, and
losses and scores have to be equal. Seconds are of the CPU, and the lowest of the rounds. Memory is the peak above what
was there before. Tokens, patches and logits are counted in the modules that compute them. Writes `results.json` and
`results.png` (needs matplotlib), and the tables of `docs/peers.md`.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from prefix_sharing import peak_memory
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from trl import DPOConfig, DPOTrainer
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from vl_reward import MPOTrainer, Qwen2_5_VLForSequenceClassification, share_prefixes
from vl_reward.data.encoding import encode_conversations
from vl_reward.models.repeated_visuals import repeated
from vl_reward.prefix_sharing.token_log_probs import TokenLogProbs
from vl_reward.tiny.base import build_config
from vl_reward.tiny.preferences import PREFERENCE_FEATURES, as_png
from vl_reward.tiny.processor import build_processor


PAGE = Path(__file__).parent.parent / "docs/peers.md"
VOCABULARY, TOKEN = 151_936, 28  # words; pixels to a side of an image token
SIDES = {256: (16, 16), 1280: (32, 40)}  # of images, in tokens
MPO_CELLS = [(16, 256, 8), *((1, visual, response) for visual in SIDES for response in (64, 256, 1024))]
SCORE_CELLS = [(k, visual, 64) for visual in SIDES for k in (2, 8, 32)]
SCORE_CELLS += [(8, visual, response) for visual in SIDES for response in (256, 1024)]
LOGITS = 2**29  # of the value-head scorer at a time: 2 GiB
QUESTION = "What is the sum of the two digits? " * 3


def draw(visual: int, response: int, number: int, responses: int) -> tuple[Image.Image, list[str]]:
    """An image of so many tokens, and responses of so many, `<|im_end|>` and the newline after it included."""
    rng = np.random.default_rng(number)
    height, width = (TOKEN * side for side in SIDES[visual])
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    # No merges of the tokenizer join these letters.
    return image, ["".join(rng.choice([*"QXZJ"], response - 2)) for _ in range(responses)]


def preference_rows(pairs: int, visual: int, response: int) -> list[dict]:
    rows = []
    for number in range(pairs):
        image, texts = draw(visual, response, number, 2)
        sides = {
            side: [{"role": "assistant", "content": text}]
            for side, text in zip(("chosen", "rejected"), texts, strict=True)
        }
        prompt = [{"role": "user", "content": QUESTION}]
        rows.append({"id": str(number), "source": "drawn", "prompt": prompt, "images": [image], **sides})
    return as_png(rows)


def build_model(
    folder: Path, vocab_size: int, processor: Qwen2_5_VLProcessor | None = None
) -> tuple[Qwen2_5_VLProcessor, Qwen2_5_VLConfig]:
    """Save a random policy with its processor, and return the processor and the config."""
    processor = processor or build_processor()
    processor.image_processor.size = {"shortest_edge": TOKEN**2, "longest_edge": 1280 * TOKEN**2}
    config = build_config(processor.tokenizer)
    config.text_config.vocab_size = vocab_size
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor, config


@contextlib.contextmanager
def counted(*models):
    """What these models compute of the decoder's tokens, the tower's patches and the head's logits."""
    counts, hooks = {"decoder tokens": 0, "vision patches": 0, "logits": 0}, []

    def add(name, number):
        counts[name] += number

    for model in models:
        text, tower = model.model.language_model.layers[0], model.model.visual.blocks[0]
        hooks += [
            text.register_forward_hook(lambda *call: add("decoder tokens", call[2].shape[:-1].numel())),
            tower.register_forward_hook(lambda *call: add("vision patches", len(call[2]))),
        ]
        if "lm_head" in dict(model.named_children()):
            hooks.append(model.lm_head.register_forward_hook(lambda *call: add("logits", call[2].numel())))
    with contextlib.ExitStack() as stack:
        for function in (ChunkedLogProbFunction, TokenLogProbs):
            apply = function.apply

            def counting(states, weight, *arguments, apply=apply):
                add("logits", len(states) * len(weight))
                return apply(states, weight, *arguments)

            stack.enter_context(mock.patch.object(function, "apply", counting))
        yield counts
    for hook in hooks:
        hook.remove()


class Peers:
    """
    The models and trainers that are compared, on one set of weights.

    Args:
        vocab_size (`int`):
            Words of the vocabulary.
        folder (`Path`):
            Where weights and outputs go.
    """

    def __init__(self, vocab_size: int, folder: Path):
        self.processor, config = build_model(folder / "model", vocab_size)
        self.folder, self.vocab_size = folder, vocab_size
        self.trl, self.ours = self.trainer(DPOTrainer), self.trainer(MPOTrainer)
        for model in (self.ours.model, self.ours.ref_model):
            share_prefixes(model)
        self.policy = self.load().requires_grad_(False)
        self.reward_model = share_prefixes(Qwen2_5_VLForSequenceClassification(config).requires_grad_(False).eval())
        self.reward_model.model.load_state_dict(self.policy.model.state_dict())

    def load(self) -> Qwen2_5_VLForConditionalGeneration:
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(self.folder / "model", dtype="float32")

    def trainer(self, trainer_class: type) -> DPOTrainer:
        args = DPOConfig(
            output_dir=str(self.folder / "out"),
            loss_type=["sigmoid", "bco_pair", "sft"],
            loss_weights=[0.8, 0.2, 1.0],
            max_length=None,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
        )
        trainer = trainer_class(
            model=self.load(),
            ref_model=self.load(),
            args=args,
            train_dataset=Dataset.from_list(preference_rows(1, 256, 8), PREFERENCE_FEATURES),
            processing_class=self.processor,
        )
        trainer.model.train()
        return trainer

    def mpo(self, pairs: int, visual: int, response: int) -> dict:
        """The ways to make a step of these pairs, as functions that return their loss, and the models of each."""
        rows = Dataset.from_list(preference_rows(pairs, visual, response), PREFERENCE_FEATURES)
        batches = {trainer: trainer.data_collator([*rows]) for trainer in (self.trl, self.ours)}
        ours = batches[self.ours]
        inputs = {key: value for key, value in ours.items() if key != "id"}
        chosen, rejected = self.ours.compute_ref_log_probs(self.ours.ref_model, inputs)

        def step(trainer, batch):
            def call():
                trainer.model.zero_grad()
                loss = trainer.compute_loss(trainer.model, dict(batch))
                loss.backward()
                return loss.detach()

            return call, (trainer.model, trainer.ref_model)

        ahead = ours | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        return {
            "trl": step(self.trl, batches[self.trl]),
            "ours": step(self.ours, ours),
            "ours, ahead": step(self.ours, ahead),
        }

    def score(self, k: int, visual: int, response: int) -> dict:
        """The ways to score K responses, as functions that return the scores, and the models of each."""
        image, texts = draw(visual, response, 0, k)
        turns = [[{"role": "user", "content": QUESTION}, {"role": "assistant", "content": text}] for text in texts]
        batch = encode_conversations(self.processor, turns, [[image]] * k, [f"response {i}" for i in range(k)])
        value, rows = self.reward_model.score, repeated(batch)
        length, patches = batch["input_ids"].shape[1], len(rows["pixel_values"]) // k
        at_a_time = max(1, LOGITS // (length * self.vocab_size))

        def value_head():
            scores = []
            for start in range(0, k, at_a_time):
                part = {key: rows[key][start : start + at_a_time] for key in rows.keys() - {"pixel_values"}}
                pixels = rows["pixel_values"][patches * start : patches * (start + at_a_time)]
                outputs = self.policy(**part, pixel_values=pixels, output_hidden_states=True, use_cache=False)
                scores.append(value(outputs.hidden_states[-1])[:, -1])
            return torch.cat(scores)

        def no_logits():
            return value(self.policy.model(**rows, use_cache=False).last_hidden_state)[:, -1]

        return {
            "value head": (value_head, (self.policy,)),
            "value head, no logits": (no_logits, (self.policy,)),
            "ours": (lambda: self.reward_model(**batch, use_cache=False).logits, (self.reward_model,)),
        }


def measure(ways: dict, rounds: int, seconds: float) -> dict[str, dict]:
    """
    Counts, peak memory and the lowest CPU seconds of each way. They take turns, up to `rounds`, and one that has taken
    more than `seconds` takes no other. What they return has to be equal.
    """
    measured, returned = {name: {"cpu_seconds": []} for name in ways}, {}
    for turn in range(rounds):
        for name, (way, models) in ways.items():
            if sum(measured[name]["cpu_seconds"]) > seconds:
                continue
            before = time.process_time()
            if turn:
                way()
            else:
                with counted(*models) as counts:
                    peak = peak_memory(lambda way=way, name=name: returned.update({name: way()}))
                measured[name] |= counts | {"peak_mib": peak}
            measured[name]["cpu_seconds"].append(time.process_time() - before)
            for model in models:
                model.zero_grad()
    expected = returned["ours"]
    for name, value in returned.items():
        assert torch.allclose(value, expected, rtol=1e-4, atol=1e-4), f"{name} gives {value}, and `ours` {expected}"
    return {name: {**way, "cpu_seconds": min(way["cpu_seconds"])} for name, way in measured.items()}


def table(cells: list[dict]) -> str:
    """Markdown: a line for each way of each cell. A ratio is that of the first way's to this one's."""
    heads = ["rows", "visual tokens", "response", "way", "CPU s", "ratio", "peak MiB", "ratio"]
    heads += ["decoder tokens", "patches", "10⁹ logits"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for cell in cells:
        first = next(iter(cell["ways"].values()))
        for name, way in cell["ways"].items():
            times, memory = first["cpu_seconds"] / way["cpu_seconds"], first["peak_mib"] / way["peak_mib"]
            lines.append(
                f"| {cell['rows']} | {cell['visual_tokens']:,} | {cell['response_tokens']:,} | {name} "
                f"| {way['cpu_seconds']:.2f} | {times:.1f} | {way['peak_mib']:,.0f} | {memory:.1f} "
                f"| {way['decoder tokens']:,} | {way['vision patches']:,} | {way['logits'] / 1e9:.3f} |"
            )
    return "\n".join(lines)


def put_between(page: str, name: str, lines: str) -> str:
    """The page with these lines between the markers of that name."""
    start, end = (page.index(marker) for marker in (f"<!-- {name} -->", f"<!-- end of {name} -->"))
    return f"{page[:start]}<!-- {name} -->\n{lines}\n{page[end:]}"


def plot(cells: dict[str, list[dict]], path: Path) -> None:
    """CPU seconds of each way: of MPO by the response's length, of scoring by K."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6))
    for row, (task, key) in enumerate((("mpo", "response_tokens"), ("score", "k"))):
        for axis, visual in zip(axes[2 * row : 2 * row + 2], SIDES, strict=True):
            drawn = [
                cell for cell in cells[task] if cell["visual_tokens"] == visual and (cell["k"] == 2 or task == "score")
            ]
            drawn = [cell for cell in drawn if task == "mpo" or cell["response_tokens"] == 64]
            for way in drawn[0]["ways"]:
                points = sorted((cell[key], cell["ways"][way]["cpu_seconds"]) for cell in drawn)
                axis.plot(*zip(*points, strict=True), marker="o", label=way)
            label = "tokens of a response" if task == "mpo" else "K responses of 64 tokens"
            name = "MPO, a pair" if task == "mpo" else "scoring"
            axis.set(title=f"{name}, {visual:,} visual tokens", xlabel=label, ylabel="CPU seconds", yscale="log")
            axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=PAGE.with_suffix(""))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="A way that has taken more takes no other turn.")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    cells = {"mpo": [], "score": []}
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(VOCABULARY, Path(folder))
        for task, ways_of, sizes in (("mpo", peers.mpo, MPO_CELLS), ("score", peers.score, SCORE_CELLS)):
            for number, visual, response in sizes:
                with contextlib.nullcontext() if task == "mpo" else torch.no_grad():
                    ways = measure(ways_of(number, visual, response), args.rounds, args.seconds)
                size = {
                    "visual_tokens": visual,
                    "response_tokens": response,
                    "k": 2 * number if task == "mpo" else number,
                }
                rows = f"{number} pair{'s' if number > 1 else ''}" if task == "mpo" else f"K = {number}"
                cells[task].append({"rows": rows, **size, "ways": ways})
                print(table(cells[task][-1:]).split("\n", 2)[2], flush=True)
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpus": os.cpu_count()}
    (args.output_dir / "results.json").write_text(json.dumps({**machine, **cells}, indent=1) + "\n")
    plot(cells, args.output_dir / "results.png")
    if args.output_dir == PAGE.with_suffix(""):
        for task in ("mpo", "score"):
            PAGE.write_text(put_between(PAGE.read_text(), task, table(cells[task])))


if __name__ == "__main__":
    main()
