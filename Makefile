# make demo   the whole loop on this machine        make test   lint, types, contracts and tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.serin-installed
WORKERS ?= 2  # processes that share the tests

export SERIN_HOME ?= $(CURDIR)/.serin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test setup lint types contracts unit test-images golden bench-capacity bench-finetune bench-serve bench-soak bench-rails bench-canary bench-gate bench-lineage clean help

help:
	@sed -n '1s/^# //p' Makefile

setup: $(STAMP)

# pip itself is pinned too: its resolver decides what a constraints file means
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed: install it, or say make PYTHON=/path/to/python3.11."; exit 1; }
	@echo "Setting up $(VENV) (about two minutes, 3 GB) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --constraint constraints.txt pip setuptools
	@$(BIN)/pip install --quiet --constraint constraints.txt torch
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/serin data samples $(SERIN_HOME)/samples --json > /dev/null
	@$(BIN)/serin run --source $(SERIN_HOME)/samples --config components/serin/samples/demo.yaml

test: setup lint types contracts unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports

unit: setup
	$(BIN)/pytest -n $(WORKERS) -m "not images"

test-images: setup
	$(BIN)/pytest -m images tests/images

bench-capacity: setup
	@$(BIN)/python tests/bench/capacity.py

bench-finetune: setup
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	@$(BIN)/python tests/bench/finetune.py

bench-serve: setup $(VENV)/litellm/bin/litellm
	@LITELLM=$(VENV)/litellm/bin/litellm $(BIN)/python tests/bench/serve.py

# the gateway's contender, which needs other versions of much that we have
$(VENV)/litellm/bin/litellm: tests/bench/serve_litellm.txt
	@echo "Setting up LiteLLM's proxy in $(VENV)/litellm ..."
	@$(PYTHON) -m venv $(VENV)/litellm
	@$(VENV)/litellm/bin/pip install --quiet --no-deps --requirement tests/bench/serve_litellm.txt
	@touch $@

bench-soak: setup
	@$(BIN)/python tests/bench/serve_soak.py

bench-rails: setup
	@$(BIN)/python tests/bench/rails_inputs.py --data ../shared/data
	@$(BIN)/python tests/bench/rails_latency.py
	@$(BIN)/python tests/bench/grounding.py

bench-canary: setup
	@$(BIN)/python tests/bench/canary.py

bench-gate: setup
	@$(BIN)/python tests/bench/gate.py

bench-lineage: setup
	@$(BIN)/python tests/bench/lineage.py

golden: setup
	@$(BIN)/python tests/pipelines/golden.py

clean:
	rm -rf .serin .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build *.egg-info
