"""What runs a model that samples or scores."""

from dataclasses import dataclass, field
from typing import Literal

from .mappings import read_mapping


SERVER_URL = "http://localhost:8000/v1"


@dataclass
class SamplingEngineArguments:
    """
    What generates responses.

    Parameters:
        engine (`str`, *optional*, defaults to `"transformers"`):
            `transformers` or `vllm` in this process, or `server`: vLLM servers.
        server_url (`list[str]`, *optional*, defaults to `["http://localhost:8000/v1"]`):
            The servers' addresses.
        engine_kwargs (`dict` or `str`, *optional*):
            vLLM's own arguments, for the engine `vllm`. A string is read as JSON.

    Raises:
        ValueError: If `engine_kwargs` is no mapping, or of no use to the engine.
    """

    engine: Literal["transformers", "vllm", "server"] = field(
        default="transformers",
        metadata={"help": "What generates: `transformers` or `vllm` here, or `server`, vLLM servers."},
    )
    server_url: list[str] = field(
        default_factory=lambda: [SERVER_URL], metadata={"help": "The addresses of the vLLM servers."}
    )
    engine_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Arguments for vLLM itself, such as `{max_model_len: 16384}`."}
    )

    def __post_init__(self):
        given, self.engine_kwargs = self.engine_kwargs, read_mapping(self.engine_kwargs)
        if given is not None and not isinstance(self.engine_kwargs, dict):
            raise ValueError(
                f"`engine_kwargs: {given}` is no mapping. Write `engine_kwargs: {{max_model_len: 16384}}` in the YAML, "
                """or `--engine_kwargs '{"max_model_len": 16384}'` on the command line."""
            )
        if given and self.engine != "vllm":
            raise ValueError(f"`engine_kwargs` is for the engine `vllm`, and `engine` is {self.engine}. Remove it.")
