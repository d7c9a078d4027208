# Everything runs in a virtual environment of its own; nothing is installed outside this folder.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help setup demo test unit lint type e2e bench clean
help:
	@echo "make demo   install whisperd with a small English model and transcribe examples/hello.flac"
	@echo "make test   install what the tests need and run them all"
	@echo "make unit   the fast tests only      make e2e   those with real processes and real speech"
	@echo "make lint   ruff                     make type  mypy, strict"
	@echo "make bench  measure beside faster-whisper and a peer server; five minutes with ARGS=--quick"

# One stamp per set of extras: re-made when pyproject.toml changes.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[tiny-en]'
	touch $@

$(VENV)/.test: $(VENV)/.demo pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[tiny-en,base,test,lint]'
	touch $@

setup: $(VENV)/.test

demo: $(VENV)/.demo
	@$(BIN)/python examples/demo.py

test: setup
	$(BIN)/pytest $(ARGS)

unit: setup
	$(BIN)/pytest tests/unit $(ARGS)

e2e: setup
	$(BIN)/pytest tests/integration tests/speech $(ARGS)

lint: setup
	$(BIN)/ruff check .

type: setup
	$(BIN)/mypy

$(VENV)/.bench: $(VENV)/.test pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[tiny-en,base,test,lint,bench]'
	touch $@

bench: $(VENV)/.bench
	mkdir -p build
	$(BIN)/python bench/compare.py --json build/bench.json --html build/bench.html $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
