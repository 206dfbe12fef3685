# `make demo` and `make test` need Python 3.10 or newer and nothing else: they make .venv and install into it.
PYTHON ?= python3
SEED ?= 0
OUT ?= outputs/tiny
BIN := .venv/bin

.PHONY: demo test quality

demo: .venv/installed
	$(BIN)/python -m vl_reward.tiny.demo --seed $(SEED) --output_dir $(OUT)

test: .venv/installed
	$(BIN)/python -m pytest tests

quality: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: pyproject.toml
	@echo "Setting up .venv (a few minutes: PyTorch is large)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar on -e '.[dev]'
	@touch $@
