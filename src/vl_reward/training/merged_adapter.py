"""What PEFT trained: kept as an adapter, and merged into its base as a plain model."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, safe_open
from transformers import PreTrainedModel, Trainer

from ..models.whole_weights import whole_weights


PATIENCE = timedelta(days=1)  # of the others, if the launcher does not end them when the process that merges dies


class MergedAdapter:
    """
    Saves a model that was trained with PEFT: the adapter in `output_dir/adapter`, and in `output_dir` the base with the
    adapter merged, which loads without PEFT.

    The trainer's own model is not merged. DeepSpeed and FSDP save the weights that they hold, which a merge in memory
    does not change: the base's would be saved, under PEFT's names. One process merges what was saved instead.

    Args:
        trainer ([`~transformers.Trainer`]):
            A trainer whose model is a `PeftModel`.
        load_base (`Callable`):
            Loads the base that was trained on, unquantized.
    """

    def __init__(self, trainer: Trainer, load_base: Callable[[], PreTrainedModel]):
        self.trainer, self.load_base = trainer, load_base

    def save(self) -> None:
        """
        Call it on all processes: weights are gathered.

        Raises:
            ValueError: If what was written does not hold what was trained.
        """
        folder = Path(self.trainer.args.output_dir)
        self.trainer.save_model(str(folder / "adapter"))
        self.trainer.accelerator.wait_for_everyone()
        if self.trainer.accelerator.num_processes == 1:
            return self._merge(folder)
        # Not in a collective, which ends the run after `ddp_timeout`: a slow disk may take longer for 7B, three times.
        store = torch.distributed.group.WORLD.get_group_store()
        if self.trainer.accelerator.is_main_process:
            self._merge(folder)
            store.set(f"merged {folder}", "")
        store.wait([f"merged {folder}"], PATIENCE)

    def _merge(self, folder: Path) -> None:
        with whole_weights(), torch.no_grad():
            adapted = PeftModel.from_pretrained(self.load_base(), folder / "adapter")
            check_equal(
                load_file(folder / "adapter/adapter_model.safetensors"), get_peft_model_state_dict(adapted), folder
            )
            merged = adapted.merge_and_unload(safe_merge=True)
        merged.save_pretrained(folder, save_original_format=False)
        self.trainer.processing_class.save_pretrained(folder)
        tied = set(merged.all_tied_weights_keys)
        check_equal(
            {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in tensors_of(file)},
            {name: tensor for name, tensor in merged.state_dict().items() if name not in tied},
            folder,
        )


def tensors_of(file: Path):
    """Names and tensors of a safetensors file, mapped from disk."""
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():
            yield name, tensors.get_tensor(name)


def check_equal(written: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], folder: Path) -> None:
    """
    Check what was written into `folder`.

    Args:
        written (`dict[str, torch.Tensor]`), expected (`dict[str, torch.Tensor]`):
            Tensors by name: those on disk, and those that should be there.
        folder (`Path`):
            For the message.

    Raises:
        ValueError: If the tensors on disk are not those expected.
    """
    wrong = sorted(written.keys() ^ expected.keys())
    # The adapter may be more precise than the base that it is merged into.
    pairs = ((name, written[name], expected[name].cpu()) for name in written.keys() & expected.keys())
    wrong += [name for name, tensor, other in pairs if not torch.equal(tensor.to(other.dtype), other)]
    if wrong:
        raise ValueError(
            f"{folder} does not hold what was trained: {len(wrong)} weights are missing, left over or different, such "
            f"as {wrong[:3]}. The last checkpoint in it does. Please report this, with the accelerate config."
        )
