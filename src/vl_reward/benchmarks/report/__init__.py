"""What a report holds besides the benchmark's own numbers: intervals, baselines, training rows, published results."""

from .benchmark_report import BenchmarkReport
from .published_table import PublishedTable
from .training_overlap import TrainingOverlap


__all__ = ["BenchmarkReport", "PublishedTable", "TrainingOverlap"]
