"""The embedded world: handwritten digits, a small Qwen2.5-VL, and the whole loop on a CPU."""
