# Two commands: `make demo` and `make test`. They need Python 3.11, make and git; everything else is installed under .envs/.
SHELL := /bin/bash
PYTHON ?= python3.11
ENVS := $(or $(MALMM_ENVS),.envs)
BIN := $(ENVS)/orchestrator/bin
SYNC := $(BIN)/python -m flows.environments sync
UV := $(shell sed -n 's/^uv==\([^ ]*\).*/\1/p' envs/orchestrator/requirements.txt)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lint bench setup images clean

help:                ## what there is
	@sed -n 's/^\([a-z]*\): .*## /  make \1\t/p;s/^\([a-z]*\):  *## /  make \1\t/p' Makefile | expand -t 16

demo: $(BIN)/uv      ## the whole pipeline on a few real photographs and clips, on the CPU
	@$(SYNC) orchestrator ingest extract_frames embed_imagebind finetune evaluate demo
	@$(BIN)/malmm demo $(ARGS)

test: $(BIN)/uv      ## all tests, each in its stage's environment; ARGS go to pytest
	@$(SYNC)
	@$(BIN)/python tests/run.py $(ARGS)

lint: $(BIN)/uv      ## ruff
	@$(SYNC) testing
	@$(ENVS)/testing/bin/ruff check --quiet . && $(ENVS)/testing/bin/ruff format --quiet --check . && echo 'ruff: nothing to say'

bench: $(BIN)/uv     ## the benchmarks of docs/
	@$(SYNC)
	@$(BIN)/python -m benchmarks $(ARGS)

setup: $(BIN)/uv     ## every environment
	@$(SYNC)

images: $(BIN)/uv    ## the stages' container images; ARGS go to `malmm images build`
	@$(SYNC) orchestrator
	@$(BIN)/malmm images build $(ARGS)

clean:               ## removes environments and caches; stores and weights stay
	rm -rf $(addprefix $(ENVS)/,orchestrator ingest extract_frames embed_imagebind finetune evaluate testing demo moto .lock)
	rm -rf .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# uv makes every environment; it comes by pip into the orchestrator's, which it then completes.
$(BIN)/uv:
	@command -v $(PYTHON) >/dev/null || { echo "malmm needs Python 3.11: install it, or name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(ENVS)/orchestrator
	$(BIN)/python -m pip install --quiet uv==$(UV)
