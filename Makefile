# Everything from nothing: `make demo` and `make test` set up what they need first.

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
PORT := 5000

# Compilers of one-off builds look for ninja on the PATH, and find it in an environment that nobody activated.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

TESTS := test-training test-on-ray test-without-ray

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo mlflow test test-fast test-fast-half test-fast-rest $(TESTS) cluster-test configuration check docs clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name about; do \
		printf 'make %-12s %s\n' "$$name" "$$about"; done

setup: $(READY) ## make .venv with exact versions and do the one-off builds

# The stamp is the last thing written: an interrupted set-up is done again. A broken .venv is replaced, a good one
# kept and brought up to date.
$(READY): pyproject.toml constraints.txt
	@if ! $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		found=; for candidate in python3.11 python3; do \
			if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
				found=$$candidate; break; fi; \
		done; \
		if [ -z "$$found" ]; then echo "error: Python 3.11 or newer is needed; neither python3.11 nor python3 is that" >&2; \
			exit 1; fi; \
		"$$found" -m venv --clear $(VENV); \
	fi
	@echo "installing into $(VENV): some minutes the first time"
	$(PYTHON) -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(PYTHON) -m pipelines.core.prebuild
	@touch $@

demo: setup ## from pictures to a pixel model and its report, on two CPU cores
	$(PYTHON) jobs/make_demo_data.py
	$(PYTHON) jobs/workflow.py jobs/configs/workflow/demo.yaml

mlflow: setup ## an MLflow server on this machine alone, for every run logged to it; PORT=5000
	@mkdir -p runs/mlflow
	@echo "export MLFLOW_TRACKING_URI=http://127.0.0.1:$(PORT) before a job, and it logs here"
	$(VENV)/bin/mlflow server --host 127.0.0.1 --port $(PORT) --backend-store-uri sqlite:///runs/mlflow/mlflow.db \
		--artifacts-destination runs/mlflow/artifacts --allowed-hosts 127.0.0.1:$(PORT),localhost:$(PORT)

# Three processes, two at a time: what trains on Ray, what else starts Ray, all others. Tests of one process share a Ray
# and what was computed on it. With threads of their own they would wait for each other, spinning. A process for which
# ARGS leave no test ends with 5, one that hangs with 3, after so many minutes and with its stacks.
test: export OMP_NUM_THREADS := 1
test: setup ## run all tests but the cluster's; ARGS="-k curate" for some
	@$(MAKE) --no-print-directory --keep-going --jobs 2 $(TESTS)

test-training: SELECTED := training and not cluster
test-on-ray: SELECTED := ray and not training and not cluster
test-without-ray: SELECTED := not ray and not cluster
$(TESTS):
	$(PYTHON) -m pytest --timeout 600 --suite-minutes 55 -m "$(SELECTED)" $(ARGS) || [ $$? -eq 5 ]

cluster-test: setup ## shards to scores by `ray job submit`, with a bucket, a tracking server and a lost head
	$(PYTHON) -m pytest --timeout 900 --suite-minutes 60 -m cluster $(ARGS)

# Halves of about the same length, one for each core.
FAST := --timeout 600 --suite-minutes 55 -m "not ray and not slow and not cluster"
HALF := tests/asymflow tests/jobs tests/pipelines/core

test-fast: export OMP_NUM_THREADS := 1
test-fast: setup ## the tests of the inner loop, which start no Ray and are not slow
	@$(MAKE) --no-print-directory --keep-going --jobs 2 test-fast-half test-fast-rest

test-fast-half:
	$(PYTHON) -m pytest $(FAST) $(HALF) $(ARGS) || [ $$? -eq 5 ]

test-fast-rest:
	$(PYTHON) -m pytest $(FAST) $(addprefix --ignore ,$(HALF)) $(ARGS) || [ $$? -eq 5 ]

configuration: setup ## write docs/configuration.md and docs/schemas from the settings
	$(PYTHON) docs/generate.py

check: setup ## ruff, pydoclint, import-linter and mypy
	$(PYTHON) -m ruff check .
	$(VENV)/bin/pydoclint asymflow
	$(VENV)/bin/lint-imports --no-logo
	$(PYTHON) -m mypy

docs: setup ## the pages of docs/ and the API reference, in runs/docs; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet --strict

clean: ## remove .venv and caches; data, runs and models stay
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
