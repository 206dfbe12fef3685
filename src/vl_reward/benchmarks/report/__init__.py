"""
What a report holds besides the benchmark's own numbers: intervals, baselines, training rows, published results, and
the file of scores.
"""

from .benchmark_report import BenchmarkReport
from .published_table import PublishedTable
from .score_file import ScoreFile
from .training_overlap import TrainingOverlap


__all__ = ["BenchmarkReport", "PublishedTable", "ScoreFile", "TrainingOverlap"]
