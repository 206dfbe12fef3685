"""Two conversations whose scores go along with an exported reward model, to compare a server's with."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import ProcessorMixin

from ..data.encoding import count_tokens, fill, render
from ..data.messages import join_turns
from .response_scorer import ResponseScorer
from .server_client import as_openai, as_url


FILE = "probes.json"
# A gap that other kernels make, as a fraction of a score, or of 1 for small scores. In bfloat16 another batch alone
# made one of 0.17, with random weights of 7B on an H200 (docs/gpu.md).
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.1}
NOTHING = 1e-6  # a head that was never filled holds what memory held, mostly zeros
MAX_PROBE_PIXELS = 1_500_000


def striped_image(width: int, height: int) -> Image.Image:
    """An image of this size whose colours differ from place to place, and that PNG packs well."""
    row = bytes(value for x in range(width) for value in (x * 7 % 256, x // 3 % 256, 255 - x % 256))
    rows = (row[3 * (y % 50) :] + row[: 3 * (y % 50)] for y in range(height))
    return Image.frombytes("RGB", (width, height), b"".join(rows))


def probe_rows(processor: ProcessorMixin) -> list[tuple[list[dict], list[dict], list, list]]:
    """
    Prompt, answer, images and videos of the two: text, and an image that is larger than the processor's pixel budget,
    so that another budget gives another number of tokens.
    """
    pixels = min(1.5 * processor.image_processor.size["longest_edge"], MAX_PROBE_PIXELS)
    image = striped_image(round(math.sqrt(pixels * 1.25)), round(math.sqrt(pixels / 1.25)))
    asked = {"Is 3 x 3 equal to 9?": "Yes: 3 + 3 + 3 = 9.", "What does the image show?": "Stripes in several colours."}
    turns = [([{"role": "user", "content": q}], [{"role": "assistant", "content": a}]) for q, a in asked.items()]
    return [(*turns[0], [], []), (*turns[1], [image], [])]


@dataclass
class Probes:
    """
    Two conversations and their scores, as an export's `probes.json` holds them.

    Args:
        dtype (`str`):
            The dtype that they were scored in.
        probes (`list[dict]`):
            `name`, `messages` in OpenAI's form, `prompt_tokens` and `score` each.
    """

    dtype: str
    probes: list[dict]

    @classmethod
    def measured_by(cls, scorer: ResponseScorer, dtype: str) -> "Probes":
        """The probes of the processor of `scorer`, with its scores. `dtype` is what it computes in."""
        rows, names = probe_rows(scorer.processor), ["the text probe", "the image probe"]
        # The convolution of the patches would take TF32 on a GPU, which moves a score by more than a server is allowed.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            scores = scorer.score_rows(rows, names)
        probes = []
        for row, name, score in zip(rows, names, scores, strict=True):
            conversation, images = join_turns(*row[:2]), row[2]
            text = render(scorer.processor, name, conversation, images)
            tokens = count_tokens(scorer.processor, name, [text], images)
            messages = as_openai(fill(name, conversation, [as_url(image) for image in images]))
            probes.append({"name": name, "messages": messages, "prompt_tokens": tokens, "score": score})
        return cls(dtype, probes)

    @classmethod
    def load(cls, folder: str | Path) -> "Probes":
        """
        Read the probes of an export.

        Raises:
            FileNotFoundError: If `folder` is none.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} has no {FILE}, with which a server's scores are compared. `python recipes/export_reward.py "
                f"--model_name_or_path {folder} --format vllm --output_dir ...` writes it: serve that folder, and name "
                "it here."
            )
        return cls(**json.loads(path.read_text()))

    def save(self, folder: str | Path) -> None:
        """Write `probes.json` into `folder`."""
        (Path(folder) / FILE).write_text(json.dumps(asdict(self), indent=2))

    def check_source(self, source: "Probes", folder: str | Path) -> None:
        """
        Compare the scores of an export with those of what was exported, to 1e-5.

        Args:
            source ([`Probes`]):
                Those of the source.
            folder (`str` or `Path`):
                The export, for the message.

        Raises:
            ValueError: If they differ.
        """
        scores = [[probe["score"] for probe in one.probes] for one in (source, self)]
        if not all(math.isclose(*pair, rel_tol=1e-5, abs_tol=1e-5) for pair in zip(*scores, strict=True)):
            raise ValueError(
                f"{folder} scores the probes as {scores[1]}, and its source as {scores[0]}: the export is wrong. "
                "Please report this, with the names of the source's weights."
            )

    def check_server(self, answered: list[tuple[int, float]], url: str) -> None:
        """
        Args:
            answered (`list[tuple[int, float]]`):
                A server's number of tokens and score for each probe.
            url (`str`):
                The server, for the error.

        Raises:
            ValueError: If they differ from the export's. The likely reason is in the message.
        """
        for probe, (tokens, score) in zip(self.probes, answered, strict=True):
            name, right = probe["name"], probe["score"]
            if tokens != probe["prompt_tokens"]:
                shown = any(part["type"] == "image_url" for turn in probe["messages"] for part in turn["content"])
                reason = "pixel budget is another (`--mm-processor-kwargs`)" if shown else "chat template is another"
                said = f"reads {name} as {tokens} tokens, and {probe['prompt_tokens']} are right: its {reason}"
            elif (allowed := TOLERANCES[self.dtype] * max(1.0, abs(right))) < abs(score - right) or score != score:
                reason = self._likely_reason(score, right, allowed)
                said = f"gives {name} the score {score:.6g}, and {right:.6g} is right, to {allowed:.1g}: {reason}"
            else:
                continue
            raise ValueError(f"{url} {said}. Serve the exported folder as its README.md says.")

    def _likely_reason(self, score: float, right: float, allowed: float) -> str:
        lost = "its head is lost, or its weights or its chat template are others"
        if abs(score) < NOTHING:
            return lost
        if abs(score - 1 / (1 + math.exp(-right))) <= allowed:
            return "it applies a sigmoid to the score (`use_activation` in `--pooler-config`, or no `problem_type`)"
        if not math.isfinite(score) or abs(score - right) <= max(0.1 * max(1.0, abs(right)), 100 * allowed):
            return f"it computes in another dtype, and {self.dtype} is right (`--dtype {self.dtype}`)"
        return lost
