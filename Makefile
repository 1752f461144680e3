# make run: set up and run the main job.   make test: set up and pass the tests.   make help: the rest.
VENV ?= .venv
PYTHON ?= python3
TORCH ?=
BIN := $(VENV)/bin
WORKERS ?= 2
STACK ?= .thawline/stack
PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5000
export DO_NOT_TRACK := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run setup setup-dev test test-long lint types lock stack help clean

run: setup            ## set up and run the main job on the embedded data
	@$(BIN)/thawline run

setup: $(VENV)/.core  ## the environment alone (TORCH=cpu: a small one, where the index has it)

setup-dev: $(VENV)/.dev

test: setup-dev       ## lint, types and all quick tests
	@$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check . && $(BIN)/codespell -q 3
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -m "not long" -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=30 --durations-min=5

test-long: setup-dev  ## the campaigns of kills, races and fuzzing
	@$(BIN)/python -m pytest -m long -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: setup-dev       ## mend what ruff can mend
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/codespell

types: setup-dev      ## check types
	@$(BIN)/mypy

lock: setup-dev       ## write the locked versions anew from what is installed
	@$(BIN)/python infra/lock.py

stack: setup-dev      ## PostgreSQL, Prefect, its worker and MLflow on loopback, until Ctrl-C
	@$(BIN)/python -m infra.stack up --folder "$(STACK)" \
	  --prefect-port $(PREFECT_PORT) --mlflow-port $(MLFLOW_PORT)

clean:                ## remove caches and logs; keeps results, records and the environment
	rm -rf .thawline/prefix logs .pytest_cache .mypy_cache .ruff_cache

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Thawline needs Python 3.11 or later; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The locks name every package, so pip need not resolve anything.
$(VENV)/.core: requirements.lock pyproject.toml | $(VENV)/bin/pip
	@echo "Setting up $(VENV): about 7 GB with the CUDA build of torch, some minutes"
	@lock=requirements.lock; \
	if [ "$(TORCH)" = cpu ]; then lock=$$(mktemp); \
	  sed -E '/^(nvidia|cuda|triton)/d; s/^((torch|torchvision)==[^ ;]*)/\1+cpu/' requirements.lock > $$lock; fi; \
	$(BIN)/pip install -q --no-deps -r $$lock
	@$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@$(BIN)/thawline weights mobilenet_v2 tf_efficientnet_lite0
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.core
	@$(BIN)/pip install -q --no-deps -r requirements-dev.lock
	@$(BIN)/pip check
	@touch $@
