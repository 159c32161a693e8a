# Each command installs what it needs into .venv; any of them may be run first.
SHELL := bash

PYTHON ?= python3
export PROMPT ?= a balloon moves up in the sky
VENV := .venv
RUN := $(VENV)/bin/python -m
INSTALL := $(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt
OPENCLIP := open_clip_torch==3.3.0 timm==1.0.31 torchvision==0.28.0

.PHONY: demo web sprites test slow lint docs bench clean

demo: $(VENV)/.core
	@TIMEFORMAT='from the prompt to the file: %1R s'; \
	time $(RUN) demo_t2v generate "$$PROMPT" --out outputs/demo --overwrite

# ARGS="--port 8000" is for other options of `demo-t2v web`.
web: $(VENV)/.web
	$(RUN) demo_t2v web $(ARGS)

# DEVICE=cuda trains on a GPU; ARGS="demo.num_steps=6000" changes the recipe.
sprites: $(VENV)/.train
	$(VENV)/bin/python scripts/train_sprites.py --device $(or $(DEVICE),cpu) $(ARGS)

test: $(VENV)/.dev
	$(RUN) pytest --cov --numprocesses 2 --dist loadfile --max-worker-restart 0

slow: $(VENV)/.dev $(VENV)/.openclip
	$(RUN) pytest -m slow

lint: $(VENV)/.dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports

# The site of the documents, in site/; a warning is an error.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.docs
	$(RUN) mkdocs build

bench: $(VENV)/.dev
	for script in benchmarks/*.py; do $(VENV)/bin/python "$$script" || exit 1; done

clean:
	rm -rf $(VENV) dist site .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/.train: $(VENV)/.core
	$(INSTALL) --editable ".[train]"
	touch $@

$(VENV)/.web: $(VENV)/.core
	$(INSTALL) --editable ".[web]"
	touch $@

$(VENV)/.docs: $(VENV)/.core
	$(INSTALL) --editable ".[docs]"
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(INSTALL) --editable ".[dev]"
	touch $@

# For a test to compare with, and apart: transformers breaks beside torchvision on a torch without CUDA.
$(VENV)/.openclip: $(VENV)/.core Makefile
	$(INSTALL) --no-deps --upgrade --target $(VENV)/openclip $(OPENCLIP)
	touch $@
