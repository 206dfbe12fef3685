"""One page to open on what the recipes left on disk: `python -m vl_reward.report RUN_DIR`."""

from .page import write_report


__all__ = ["write_report"]
