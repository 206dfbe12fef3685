"""
Public benchmarks of reward models, one file each: `load()` reads the public file, and `summarize(rows, scores)` turns
scores into the benchmark's own numbers. `rows` (`list[dict]`) are as `load` gives them, and `scores`
(`list[list[float]]`) are those of each row's `responses`, in their order. They know no model, and no images but their
paths.
"""
