"""Public sets to one curated preference dataset, and to one of prompts."""

from .audit import CurationAudit
from .inspection import PairInspection
from .output_folder import OutputFolder
from .pair_curation import PairCuration
from .prompts.prompt_set import PromptSet
from .prompts.prompt_source import PromptSource
from .source import PreferenceSource
from .steps.decontamination import BenchmarkContent


__all__ = [
    "BenchmarkContent",
    "CurationAudit",
    "OutputFolder",
    "PairCuration",
    "PairInspection",
    "PreferenceSource",
    "PromptSet",
    "PromptSource",
]
