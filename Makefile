# `make demo` and `make test` need Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/tiny

.PHONY: demo test lint clean

demo: .venv/demo.stamp
	$(BIN)/omnivinci av_world --out runs/av_world
	$(BIN)/omnivinci train --config configs/tiny.py --workdir $(RUN)
	$(BIN)/omnivinci generate --model $(RUN)/model --video runs/av_world/$$($(BIN)/python -m omnivinci_jax.data.av_world.example --path) \
		--prompt "$$($(BIN)/python -m omnivinci_jax.data.av_world.example --question)"

test: .venv/test.stamp lint
	$(BIN)/pytest

lint: .venv/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.venv/pip.stamp:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	touch $@

.venv/demo.stamp: .venv/pip.stamp pyproject.toml
	$(BIN)/pip install --quiet -e .
	touch $@

# The CPU build of torch comes first: the parity tests' `torch` then finds it in place.
.venv/test.stamp: .venv/pip.stamp pyproject.toml
	$(BIN)/pip install --quiet torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu
	$(BIN)/pip install --quiet -e '.[test,parity]'
	touch $@ .venv/demo.stamp

clean:
	rm -rf .venv runs
