"""How responses are sampled: what all samplers, greedy accuracy and the judge have in common."""

from dataclasses import dataclass, field


@dataclass
class SamplingParameters:
    """
    Every parameter of sampling. A checkpoint's own `generation_config` is never used: Qwen2.5-VL's sets `top_k=1`, with
    which all samples are equal.

    Parameters:
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest response. A response that reaches it is unfinished: its finish reason is `"length"`.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; 0 decodes greedily.
        top_p (`float`, *optional*, defaults to `1.0`):
            Keep the likeliest tokens up to this probability; 1 keeps all.
        top_k (`int`, *optional*, defaults to `0`):
            Keep this many of the likeliest tokens; 0 keeps all.
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            Divide the logits of tokens seen before; 1 leaves them.
        batch_size (`int`, *optional*, defaults to `64`):
            Responses generated, or asked for, at a time, per process.
    """

    max_new_tokens: int = field(default=1024, metadata={"help": "The most tokens of a response."})
    temperature: float = field(default=1.0, metadata={"help": "The sampling temperature. 0 takes the likeliest token."})
    top_p: float = field(default=1.0, metadata={"help": "The likeliest tokens that add up to this are kept. 1: all."})
    top_k: int = field(default=0, metadata={"help": "The number of likeliest tokens that are kept. 0: all."})
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "The penalty for tokens that were used before. 1: none."}
    )
    batch_size: int = field(
        default=64, metadata={"help": "The number of responses that each process generates, or asks for, at a time."}
    )
