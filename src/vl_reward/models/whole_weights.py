"""Models that are loaded whole on each process, whatever DeepSpeed does with the one that is trained."""

from contextlib import contextmanager

from transformers.integrations import deepspeed


@contextmanager
def whole_weights():
    """
    In this context `from_pretrained` loads all weights on this process. Under ZeRO-3 transformers would load each
    model in parts, also one that no engine is made for: its weights would be empty, or gathered by all processes.
    """
    sharding = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = sharding
