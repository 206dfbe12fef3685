"""A reward model's checkpoint in another layout, written shard by shard."""

import json
import shutil
from pathlib import Path
from typing import Literal, get_args

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    PreTrainedConfig,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from .checkpoint_formats import VALUE_HEAD, load_value_head


Format = Literal["vllm", "value_head", "native"]
# What goes along as it is: the processor, the chat template and the settings of generation.
COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)
INDEX = "model.safetensors.index.json"


class ExportedCheckpoint:
    """
    Writes a reward model in one of three layouts, from any of them. No more than a shard is in memory, and the shards
    are those of the source.

    - `native`: as this project's class saves itself.
    - `vllm`: what vLLM serves. The head has the name that vLLM's class looks for, and the configuration says, at its
      top and for the decoder, that there is one label and no sigmoid.
    - `value_head`: a plain vision-language model in the hub's layout, with the head in `value_head.safetensors`, as
      LLaMA-Factory's `stage: rm` and Skywork-VL-Reward-7B have it. It has the embeddings for its language-model head
      where the source has none.

    Args:
        source (`str`):
            A folder, or a name on the hub.
        format (`str`):
            `"vllm"`, `"value_head"` or `"native"`.
        revision (`str`, *optional*, defaults to `"main"`):
            Of the source on the hub.

    Raises:
        FileNotFoundError: If the source holds no safetensors.
        ValueError: If the source is no reward model, or lacks weights, or has others.
    """

    def __init__(self, source: str, format: Format, revision: str = "main"):
        assert format in get_args(Format)
        known = (*COMPANIONS, "config.json", INDEX, "*.safetensors")
        is_local = Path(source).is_dir()
        self.source = Path(source if is_local else snapshot_download(source, revision=revision, allow_patterns=known))
        self.format = format
        self.config = AutoConfig.from_pretrained(self.source)
        self.model_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(self.config)]
        self.plain_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(self.config)]
        self.files = self._shards()
        self.head = self._head()
        self.dtype = self.config.dtype or torch.float32

    def _shards(self) -> list[str]:
        if (self.source / "adapter_config.json").exists():
            raise ValueError(
                f"{self.source} is an adapter. The folder above it holds the model with it merged: give that."
            )
        index = self.source / INDEX
        files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else []
        files = files or [path.name for path in self.source.glob("model.safetensors")]
        if not files:
            raise FileNotFoundError(f"{self.source} holds neither {INDEX} nor model.safetensors: it is no checkpoint.")
        return files

    def _head(self) -> dict[str, torch.Tensor]:
        """Weight and bias of the head, wherever the source has them. Of two, the one that the model loads."""
        head = {}
        for file in self.files:
            with safe_open(self.source / file, "pt") as tensors:
                for name in tensors.keys():
                    if (native := self._native_name(name)).startswith("score."):
                        head[native.removeprefix("score.")] = tensors.get_tensor(name)
        if not head and (value_head := load_value_head(str(self.source))) is not None:
            head["weight"], bias = value_head
            head |= {"bias": torch.tensor([bias])} if bias else {}
        if "weight" not in head or head["weight"].shape[0] != 1:
            raise ValueError(
                f"{self.source} holds no reward head: neither `score.weight` with one row nor {VALUE_HEAD}. It is not "
                "a reward model of this project, or was never trained."
            )
        return head

    def _native_name(self, name: str) -> str:
        """A weight's name in this project's class, whatever the layout it comes from."""
        for renaming in get_checkpoint_conversion_mapping(self.plain_class.__name__) or ():
            name, _ = renaming.rename_source_key(name)
        return name.replace(f"{self.model_class.vllm_head_name}.", "score.", 1)

    def _written_name(self, name: str) -> str | None:
        """The name that a weight is written under, `None` where it is left out."""
        native = self._native_name(name)
        if native.startswith("score."):
            return None  # written with the last shard, or beside
        if self.format != "value_head":
            return None if native == "lm_head.weight" else native
        for renaming in reversed(get_checkpoint_conversion_mapping(self.plain_class.__name__) or ()):
            native, _ = renaming.reverse_transform().rename_source_key(native)
        return native

    def write(self, output_dir: str | Path) -> None:
        """
        Write the checkpoint with its configuration and processor.

        Raises:
            ValueError: If the folder holds weights already, or the source lacks some, or has others.
        """
        folder, weight_map, total = Path(output_dir), {}, 0
        if folder.resolve() == self.source.resolve():
            raise ValueError(f"`output_dir` is the source, {folder}, whose weights would be lost. Name another folder.")
        if old := sorted(path.name for path in folder.glob("*.safetensors")):
            raise ValueError(
                f"{folder} holds {old[0]}, which would stay beside the export. Delete it, or name another."
            )
        self._check_complete()
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.files:
            with safe_open(self.source / file, "pt") as tensors:
                named = {self._written_name(name): name for name in tensors.keys()}
                shard = {new: tensors.get_tensor(name) for new, name in named.items() if new is not None}
            if file == self.files[-1] and self.format != "value_head":
                place = "score" if self.format == "native" else self.model_class.vllm_head_name
                shard |= {f"{place}.{name}": tensor for name, tensor in self.head.items()}
            save_file(shard, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
            total += sum(tensor.nbytes for tensor in shard.values())
        if len(self.files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (folder / INDEX).write_text(json.dumps(index, indent=2))
        if self.format == "value_head":
            head = {"bias": torch.zeros(1)} | {name: tensor.float() for name, tensor in self.head.items()}
            save_file({f"v_head.summary.{name}": tensor for name, tensor in head.items()}, folder / VALUE_HEAD)
        self._written_config(has_lm_head="lm_head.weight" in weight_map).save_pretrained(folder)
        for name in COMPANIONS:
            if (self.source / name).exists():
                shutil.copy(self.source / name, folder / name)

    def _check_complete(self) -> None:
        """
        Raises:
            ValueError: If weights of the backbone are missing, left over, or of another shape.
        """
        given = {}
        for file in self.files:
            with safe_open(self.source / file, "pt") as tensors:
                given |= {self._native_name(name): tensors.get_slice(name).get_shape() for name in tensors.keys()}
        with torch.device("meta"):
            needed = {name: list(weight.shape) for name, weight in self.model_class(self.config).state_dict().items()}
        apart = {"lm_head.weight", "score.weight", "score.bias"}
        wrong = sorted(name for name in {*given, *needed} - apart if given.get(name) != needed.get(name))
        if wrong:
            raise ValueError(
                f"{self.source} does not fit {self.model_class.__name__}: {len(wrong)} weights are missing, left over "
                f"or of another shape, such as {wrong[:3]}. Is the checkpoint whole?"
            )

    def _written_config(self, has_lm_head: bool) -> PreTrainedConfig:
        config = self.config
        if self.format == "value_head":
            config.architectures = [self.plain_class.__name__]
            config.num_labels = 2  # transformers' default, which is not written
            config.problem_type, config.score_bias = None, False
            config.tie_word_embeddings = config.tie_word_embeddings or not has_lm_head
            return config
        config.architectures = [self.model_class.__name__]
        config.score_bias = "bias" in self.head
        for part in (config, config.text_config) if self.format == "vllm" else (config,):
            part.num_labels = 1
            part.problem_type = "regression" if self.format == "vllm" else None  # without it, vLLM applies a sigmoid
        return config
