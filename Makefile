# `make demo` and `make test` do all the set-up they need, in .venv; either may be run first.
SHELL := bash

PYTHON ?= python3
export PROMPT ?= a balloon moves up in the sky
VENV := .venv
RUN := $(VENV)/bin/python -m
INSTALL := $(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt
OPENCLIP := open_clip_torch==3.3.0 timm==1.0.31 torchvision==0.28.0

.PHONY: demo sprites test slow lint bench clean

demo: $(VENV)/.core
	@TIMEFORMAT='from the prompt to the file: %1R s'; \
	time $(RUN) demo_t2v generate "$$PROMPT" --out outputs/demo --overwrite

# DEVICE=cuda trains on a GPU; ARGS="demo.num_steps=6000" changes the recipe.
sprites: $(VENV)/.train
	$(VENV)/bin/python scripts/train_sprites.py --device $(or $(DEVICE),cpu) $(ARGS)

test: $(VENV)/.dev
	$(RUN) pytest --cov --numprocesses 2 --dist loadfile

slow: $(VENV)/.dev $(VENV)/.openclip
	$(RUN) pytest -m slow

lint: $(VENV)/.dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.dev
	for script in benchmarks/*.py; do $(VENV)/bin/python "$$script" || exit 1; done

clean:
	rm -rf $(VENV) dist .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/.train: $(VENV)/.core
	$(INSTALL) --editable ".[train]"
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(INSTALL) --editable ".[dev]"
	touch $@

# For a test to compare with, and apart: transformers breaks beside torchvision on a torch without CUDA.
$(VENV)/.openclip: $(VENV)/.core Makefile
	$(INSTALL) --no-deps --upgrade --target $(VENV)/openclip $(OPENCLIP)
	touch $@
