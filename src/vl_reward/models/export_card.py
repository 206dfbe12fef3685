"""The card of an exported reward model."""

import hashlib
import json
from dataclasses import dataclass

import torch
import transformers
from transformers import ProcessorMixin


MAX_MODEL_LEN = 16384  # tokens of prompt, images and response that the card's server takes
TESTED_VLLM = "0.30"
LOADING = """```python
from vl_reward import RewardScorer

scorer = RewardScorer.from_pretrained("{folder}")
scores = scorer(prompts=["What is the sum?"], completions=["9"], images=[[image]])
```"""


def serve_command(folder: str, dtype: str, max_position_embeddings: int) -> str:
    """
    The command that serves a folder in the layout `vllm`.

    Args:
        folder (`str`):
            The folder.
        dtype (`str`):
            What to compute in. `float16` would overflow, and `auto` may choose it.
        max_position_embeddings (`int`):
            Of the decoder, which limits the length.
    """
    limit = min(MAX_MODEL_LEN, max_position_embeddings)
    images = """--limit-mm-per-prompt '{"image": 8}'"""
    return f"vllm serve {folder} --runner pooling --dtype {dtype} --max-model-len {limit} {images}"


@dataclass
class ExportCard:
    """
    Parameters:
        folder (`str`):
            Where the export is, or its name on the hub.
        source (`str`):
            What was exported.
        format (`str`):
            Its layout.
        dtype (`str`):
            The dtype that the probes were scored in.
        max_position_embeddings (`int`):
            Of the decoder.
        datasets (`list[str]`):
            What it was trained on.
        training_metrics (`dict[str, float]`):
            What its trainer measured at the end.
        results (`dict[str, dict]`):
            What `recipes/evaluate_reward.py` wrote as `results.json`, by the name of its folder.
    """

    folder: str
    source: str
    format: str
    dtype: str
    max_position_embeddings: int
    datasets: list[str]
    training_metrics: dict[str, float]
    results: dict[str, dict]

    def markdown(self, processor: ProcessorMixin) -> str:
        """The card, with the hub's front matter."""
        turns = [{"role": role, "content": [{"type": "text", "text": role}]} for role in ("user", "assistant")]
        end = processor.apply_chat_template(turns).rpartition("assistant")[2]
        template = hashlib.sha256(json.dumps(processor.chat_template).encode()).hexdigest()
        size = dict(processor.image_processor.size)
        lines = ["---", "pipeline_tag: image-text-to-text", "tags:", "- reward-model", "- vl_reward", "---", ""]
        lines += ["# Vision-language reward model", ""]
        lines += [f"Made of `{self.source}` by `recipes/export_reward.py --format {self.format}`.", ""]
        lines += ["- One score per conversation. Only differences between responses to one prompt mean something."]
        lines += [f"- The score is read at the last token of the conversation, which ends in {end!r}."]
        lines += [f"- Chat template: SHA-256 `{template}`."]
        lines += [f"- Pixel budget of an image: {size['shortest_edge']:,} to {size['longest_edge']:,} pixels."]
        lines += [f"- Probes: `probes.json` has two conversations with their scores in {self.dtype}."]
        lines += [f"- Versions: transformers {transformers.__version__}, torch {torch.__version__}.", ""]
        lines += ["## Use", ""]
        if self.format == "vllm":
            lines += ["```bash", serve_command(self.folder, self.dtype, self.max_position_embeddings), "```", ""]
            lines += ["```python", "from vl_reward import ServerScorer", ""]
            lines += [f'scorer = ServerScorer("http://localhost:8000/v1", "{self.folder}")', "```", ""]
            lines += [f"vLLM {TESTED_VLLM} is what this project tests.", ""]
            lines += ["`ServerScorer` compares the server's scores with the probes first. A request by hand:", ""]
            lines += ["`POST /classify` with `model`, `messages` that end in the assistant's turn, and"]
            lines += ['`"add_generation_prompt": false`; the score is `data[0].probs[0]`.', ""]
        else:
            lines += [LOADING.format(folder=self.folder), ""]
        lines += ["## Data", "", *([f"- {name}" for name in self.datasets] or ["Not given."]), ""]
        lines += ["## Results", ""]
        for name, value in self.training_metrics.items():
            lines += [f"- {name}, held-out pairs of the training: {value:.4g}"]
        for name, result in self.results.items():
            lines += [f"- {name}: {result['overall']:.1%} of {result['n']:,}, by {result['model']}"]
        return "\n".join([*lines, *([] if self.results or self.training_metrics else ["Not given."]), ""])
