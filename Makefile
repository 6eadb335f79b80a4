# `make demo` and `make test` are all that a new machine needs: each sets up what it uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FRAMEWORKS := $(VENV)/frameworks
DOCS := $(VENV)/docs
BENCH := $(VENV)/bench
DATA := .bge-pipeline
# The theme's advertisement of its successor is no finding.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-frameworks test-endpoint test-celery test-deployment test-servers test-pythons chaos docs lint lint-style lint-types lint-imports lint-docs format dev benchmark clean clean-data

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-17s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## Make .venv with everything that demo, test and lint use.

$(INSTALLED): pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[embedded,openvino,celery,kubernetes,traces,slack,dev]'
	touch $@

demo: $(INSTALLED)  ## Migrate a table of Python documentation from 1536 to 384 dimensions, and search it before and after.
	$(BIN)/bge-pipeline demo --reset

test: $(INSTALLED)  ## Run the tests but for those marked thorough; those that need what is missing here are skipped and say so.
	# The hundreds of processes that they start compile nothing anew, even where PYTHONDONTWRITEBYTECODE is set.
	$(BIN)/python -m compileall -q bge_pipeline bge_pipeline_tests migrations
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not thorough and not frameworks and not real_endpoint and not celery" $(ARGS)

test-all: $(INSTALLED)  ## Run every test, those marked thorough too.
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not frameworks and not real_endpoint and not celery" $(ARGS)

test-frameworks: $(INSTALLED) $(FRAMEWORKS)/.installed  ## Migrate tables that LangChain, LlamaIndex and others made.
	FRAMEWORKS_PYTHON=$(CURDIR)/$(FRAMEWORKS)/bin/python $(BIN)/python -m pytest -m frameworks $(ARGS)

$(FRAMEWORKS)/.installed: pyproject.toml | $(INSTALLED)
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/pip install --quiet --upgrade pip
	$(FRAMEWORKS)/bin/pip install --quiet --group frameworks
	touch $@

test-endpoint: $(INSTALLED)  ## Install a real embeddings server from PyPI beside .venv and test against it.
	$(BIN)/python -m pytest -m real_endpoint $(ARGS)

test-celery: $(INSTALLED)  ## Kill workers, broker, webserver and daemon beneath a backfill of 200,000 rows; needs redis-server.
	$(BIN)/python -m pytest -n 0 -m celery $(ARGS)

test-deployment: $(INSTALLED)  ## Check Dockerfile, compose files and Helm values with the tools made for them; installs these.
	$(BIN)/pip install --quiet --group deployment
	$(BIN)/python -m pytest -n 0 bge_pipeline_tests/fleet -m "not celery" $(ARGS)

test-servers: $(INSTALLED)  ## Test against PostgreSQL and pgvector of several versions, from PyPI; ARGS="--only 17-0.8" takes one.
	$(BIN)/python -m bge_pipeline_tests.versions servers $(ARGS)

test-pythons: $(INSTALLED)  ## Test with each Python on the path, or in PYTHONS; each gets an environment of 2 to 6 GB.
	$(BIN)/python -m bge_pipeline_tests.versions pythons $(ARGS)

chaos: $(INSTALLED)  ## Play 100 migrations that are killed, cut off and frozen; ARGS="--rounds 1 --seed 7" plays one again.
	$(BIN)/python -m bge_pipeline_tests.chaos $(ARGS)

docs: $(DOCS)/.installed  ## Build the site of the documents into site/; a link that leads nowhere is an error.
	$(MKDOCS) build --strict

$(DOCS)/.installed: pyproject.toml | $(INSTALLED)
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --upgrade pip
	$(DOCS)/bin/pip install --quiet --group docs
	touch $@

lint: lint-style lint-types lint-imports lint-docs  ## Check style, types, the direction of imports, declared imports, and the documents' links.

lint-style: $(INSTALLED)  ## Of lint, style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: $(INSTALLED)  ## Of lint, types.
	$(BIN)/mypy

lint-imports: $(INSTALLED)  ## Of lint, the direction of imports, and whether they are declared.
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry bge_pipeline migrations
	$(BIN)/deptry . --ignore DEP002,DEP004

lint-docs: $(DOCS)/.installed  ## Of lint, the documents' links.
	$(MKDOCS) build --strict --site-dir $(DOCS)/site

format: $(INSTALLED)  ## Put the code into shape.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dev: $(INSTALLED)  ## Start the Dagster UI on http://127.0.0.1:3000.
	$(BIN)/bge-pipeline dev

benchmark: $(BENCH)/.installed  ## Measure this machine and write docs/benchmarks.md, but for ten million rows and the peer; takes hours.
	rm -f benchmarks/results/encode-*.json
	$(BENCH)/bin/python -m benchmarks.encode
	$(BENCH)/bin/python -m benchmarks.ways
	$(BENCH)/bin/python -m benchmarks.lengths
	$(BENCH)/bin/python -m benchmarks.model_change
	$(BENCH)/bin/python -m benchmarks.overlap
	$(BENCH)/bin/python -m benchmarks.precision_quality
	$(BENCH)/bin/python -m benchmarks.write
	$(BENCH)/bin/python -m benchmarks.write --table-rows 1000000
	$(BENCH)/bin/python -m benchmarks.writers
	$(BENCH)/bin/python -m benchmarks.log_volume
	$(BENCH)/bin/python -m benchmarks.index
	$(BENCH)/bin/python -m benchmarks.backfill --rows 100000 1000000
	$(BENCH)/bin/python -m benchmarks.dagster_overhead
	$(BENCH)/bin/python -m benchmarks.dagster_partitions
	$(BENCH)/bin/python -m benchmarks.search_quality
	$(BENCH)/bin/python -m benchmarks.search_effort
	$(BENCH)/bin/python -m benchmarks.live --rows 20000
	$(BENCH)/bin/python -m benchmarks.document
	$(BENCH)/bin/python -m benchmarks.scaling

$(BENCH)/.installed: pyproject.toml constraints.txt setup.py | $(INSTALLED)
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install --quiet --upgrade pip
	# optimum-intel takes no newer huggingface-hub than 1.21.
	grep -v '^huggingface-hub==' constraints.txt > $(BENCH)/constraints.txt
	$(BENCH)/bin/pip install --quiet --constraint $(BENCH)/constraints.txt --editable '.[embedded,openvino,traces,slack,dev,bench]'
	# It asks for torchvision too, nothing uses it, and a build for another accelerator than torch's breaks transformers.
	$(BENCH)/bin/pip uninstall --quiet --yes torchvision
	touch $@

clean:  ## Remove .venv, caches and what was built; clean-data removes data.
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist site *.egg-info

clean-data:  ## Ask, then delete the embedded databases with all tables in them, converted models and reports; YES=1 does not ask.
	@for pid in $$(find $(DATA) -name postmaster.pid -exec head -n 1 {} ';' 2>/dev/null); do \
	  if kill -0 "$$pid" 2>/dev/null; then \
	    echo "PostgreSQL (process $$pid) works in $(DATA): end bge-pipeline dev and what else uses it first." >&2; exit 1; \
	  fi; \
	done
	@if [ "$(YES)" = 1 ]; then exit 0; fi; \
	if [ ! -t 0 ]; then echo "There is no terminal to ask on: make clean-data YES=1" >&2; exit 1; fi; \
	printf '%s' "Delete $(DATA) with the databases, Dagster's records, models and reports in it? [y/N] "; \
	read -r answer; \
	[ "$$answer" = y ] || { echo "Nothing was deleted."; exit 1; }
	rm -rf $(DATA)
