# `make demo` and `make test` are all that a new machine needs: each sets up what it uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FRAMEWORKS := $(VENV)/frameworks

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-frameworks test-endpoint chaos lint format dev benchmark clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(INSTALLED)  ## Make .venv with everything that demo, test and lint use.

$(INSTALLED): pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[embedded,openvino,traces,slack,dev]'
	touch $@

demo: $(INSTALLED)  ## Migrate a table of Python documentation from 1536 to 384 dimensions, and search it before and after.
	$(BIN)/bge-pipeline demo --reset

test: $(INSTALLED)  ## Run the tests but for those marked thorough; those that need what is missing here are skipped and say so.
	$(BIN)/python -m pytest -n 2 -m "not thorough and not frameworks and not real_endpoint" $(ARGS)

test-all: $(INSTALLED)  ## Run every test, those marked thorough too.
	$(BIN)/python -m pytest -n 2 -m "not frameworks and not real_endpoint" $(ARGS)

test-frameworks: $(INSTALLED) $(FRAMEWORKS)/.installed  ## Migrate tables that LangChain, LlamaIndex and others made.
	FRAMEWORKS_PYTHON=$(CURDIR)/$(FRAMEWORKS)/bin/python $(BIN)/python -m pytest -m frameworks $(ARGS)

$(FRAMEWORKS)/.installed: pyproject.toml | $(INSTALLED)
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/pip install --quiet --upgrade pip
	$(FRAMEWORKS)/bin/pip install --quiet --group frameworks
	touch $@

test-endpoint: $(INSTALLED)  ## Install a real embeddings server from PyPI beside .venv and test against it.
	$(BIN)/python -m pytest -m real_endpoint $(ARGS)

chaos: $(INSTALLED)  ## Play 100 migrations that are killed, cut off and frozen; ARGS="--rounds 1 --seed 7" plays one again.
	$(BIN)/python -m bge_pipeline_tests.chaos $(ARGS)

lint: $(INSTALLED)  ## Check style, types, the direction of imports, and that what is imported is declared.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry bge_pipeline migrations
	$(BIN)/deptry . --ignore DEP002,DEP004

format: $(INSTALLED)  ## Put the code into shape.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dev: $(INSTALLED)  ## Start the Dagster UI on http://127.0.0.1:3000.
	$(BIN)/bge-pipeline dev

benchmark: $(INSTALLED)  ## Measure this machine and write docs/benchmarks.md; takes more than an hour.
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[embedded,openvino,traces,slack,dev,bench]'
	# optimum-intel asks for torchvision, nothing uses it, and a build for another accelerator than torch's breaks transformers.
	$(BIN)/pip uninstall --quiet --yes torchvision
	$(BIN)/python -m benchmarks.encode
	$(BIN)/python -m benchmarks.lengths
	$(BIN)/python -m benchmarks.model_change
	$(BIN)/python -m benchmarks.overlap
	$(BIN)/python -m benchmarks.precision_quality
	$(BIN)/python -m benchmarks.write
	$(BIN)/python -m benchmarks.index
	$(BIN)/python -m benchmarks.backfill --rows 100000 1000000
	$(BIN)/python -m benchmarks.dagster_overhead
	$(BIN)/python -m benchmarks.dagster_partitions
	$(BIN)/python -m benchmarks.search_quality
	$(BIN)/python -m benchmarks.live --rows 20000
	$(BIN)/python -m benchmarks.document

clean:  ## Remove .venv, the embedded database and caches.
	rm -rf $(VENV) .bge-pipeline .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info
