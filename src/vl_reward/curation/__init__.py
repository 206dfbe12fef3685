"""Public preference sets to one curated preference dataset."""

from .audit import CurationAudit
from .curation import PairCuration
from .decontamination import BenchmarkContent
from .inspection import PairInspection
from .output_folder import OutputFolder
from .source import PreferenceSource


__all__ = ["BenchmarkContent", "CurationAudit", "OutputFolder", "PairCuration", "PairInspection", "PreferenceSource"]
