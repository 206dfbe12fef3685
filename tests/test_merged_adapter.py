"""The merge of an adapter on one process, for which the others wait."""

from launches import launcher
from safetensors.torch import load_file
from test_recipes import run


# Collectives end after 8 seconds, and loading the base takes 10. A training's end after half an hour.
SCRIPT = """
import sys, time
from datetime import timedelta
from types import SimpleNamespace

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor
from vl_reward.training.merged_adapter import MergedAdapter

path, out = sys.argv[1:]
accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=8))])
assert accelerator.num_processes == 2


def load_base(seconds=10):
    time.sleep(seconds)
    return AutoModelForImageTextToText.from_pretrained(path, dtype="float32")


model = get_peft_model(load_base(0), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
save = model.save_pretrained if accelerator.is_main_process else lambda folder: None
trainer = SimpleNamespace(save_model=save, accelerator=accelerator, args=SimpleNamespace(output_dir=out))
trainer.processing_class = AutoProcessor.from_pretrained(path)
accelerator.wait_for_everyone()
MergedAdapter(trainer, load_base).save()
accelerator.wait_for_everyone()
sys.stdout.write(f"the end of process {accelerator.process_index}\\n")  # in one piece, whatever the other writes
accelerator.end_training()
"""


def test_processes_wait_for_a_merge_that_takes_longer_than_a_collective_may(policy_path, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [*launcher("cpu_2_processes", tmp_path), str(tmp_path / "script.py"), str(policy_path)]
    said = run([*command, str(tmp_path / "out")], tmp_path)
    assert "the end of process 0" in said and "the end of process 1" in said
    assert not any("lora" in name for name in load_file(tmp_path / "out/model.safetensors"))
