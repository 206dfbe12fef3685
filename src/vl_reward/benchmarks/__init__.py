"""
Public benchmarks of reward models, one file each: `load()` reads the public file, `summarize()` turns scores into the
benchmark's own numbers. They know no model, and no images but their paths.
"""
