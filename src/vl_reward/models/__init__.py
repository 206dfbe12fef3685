"""Reward heads on a backbone, one file a family, and the layouts of their checkpoints."""
