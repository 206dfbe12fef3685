"""Public preference sets to one curated preference dataset."""

from .audit import CurationAudit
from .inspection import PairInspection
from .output_folder import OutputFolder
from .pair_curation import PairCuration
from .source import PreferenceSource
from .steps.decontamination import BenchmarkContent


__all__ = ["BenchmarkContent", "CurationAudit", "OutputFolder", "PairCuration", "PairInspection", "PreferenceSource"]
