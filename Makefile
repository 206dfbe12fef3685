# `make demo` and `make test` need Python 3.11 or newer and nothing else: they make .venv and install into it.
PYTHON ?= python3
SEED ?= 0
FAMILY ?= qwen2_5_vl
OUT ?= outputs/tiny$(if $(filter-out qwen2_5_vl,$(FAMILY)),_$(FAMILY))
BIN := .venv/bin

.PHONY: demo study test test-vllm test-gpu test-distributed test-rotation rehearsal soak quality

demo: .venv/installed
	$(BIN)/python -m vl_reward.tiny.demo --seed $(SEED) --output_dir $(OUT) --family $(FAMILY)

# Two hours and a half: the demo with three seeds, and what the README's table of on-policy training compares.
study: .venv/installed
	for seed in 0 1 2; do \
	    $(MAKE) demo SEED=$$seed OUT=outputs/seed_$$seed || exit 1; \
	    $(BIN)/python bench/study.py --demo_dir outputs/seed_$$seed --seed $$seed || exit 1; \
	done
	$(BIN)/python bench/study_report.py outputs/seed_*/study/study.json --output_dir outputs/study

test: .venv/installed
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

# Sampling and serving with a real vLLM on the CPU, in an environment of its own that sees the packages of .venv.
test-vllm: .venv-vllm/installed
	.venv-vllm/bin/python -m pytest tests/real_vllm -m vllm

# What needs a GPU. Without flash_attn, PyTorch's copy of its kernels stands in.
test-gpu: .venv/installed
	PYTHONPATH=tests/gpu/flash_attn_of_torch $(BIN)/python -m pytest tests/gpu -m gpu

# Every training on layers as wide as those of 7B and 3B, two of each, on whatever device is there. 20 GB and 20 minutes
# on a CPU.
rehearsal: .venv/installed
	$(BIN)/python bench/rehearsal.py

# 2,000 steps of stage 2 with three stops, and the memory of its process.
soak: .venv/installed
	$(BIN)/python bench/soak.py --output_dir docs/soak

# An hour and a half: each recipe on two processes under DDP, ZeRO-2, ZeRO-3 and FSDP2, against one; and trainings that
# go on in new processes, against those that were not stopped.
test-distributed: .venv/installed
	$(BIN)/python bench/distributed.py --output_dir docs/distributed
	$(BIN)/python bench/distributed_resume.py --output_dir docs/distributed

# One part of 15 of the first table, in four minutes. The next day has the next part, and so has the next hour.
PARTS := 15
PART ?= $(shell echo $$(( ($$(date +%s) / 86400 + $$(date +%s) / 3600 % 24) % $(PARTS) + 1 )))/$(PARTS)
test-rotation: .venv/installed
	$(BIN)/python bench/distributed.py --part $(PART)

quality: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: pyproject.toml
	@echo "Setting up .venv (a few minutes: PyTorch is large)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar on -e '.[dev]'
	@touch $@

.venv-vllm/installed: .venv/installed tests/real_vllm/requirements.txt
	$(PYTHON) -m venv .venv-vllm
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	    > "$$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	.venv-vllm/bin/python -m pip install --progress-bar on --no-deps --require-hashes -r tests/real_vllm/requirements.txt
	@touch $@
