# The only place where commands are written down: people, .ci/run, the workflow and the Dockerfile call these.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# The first of these that runs, which a shim of pyenv may not; PYTHON=... names another one.
PYTHON ?= $(shell for each in python3.13 python3.12 python3.11; do if $$each -c '' 2> /dev/null; then echo $$each; break; fi; done)
VENV := .venv
DEMO := .demo
STAMP := $(VENV)/.installed
PORT ?= 5000
DATA ?= data
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: help setup demo repro test test-fast torture team bench bench-gpu experiments exps check ui docs format clean lock audit

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What torch loads only on a GPU. It is linked to CUDA's other libraries, and does not start without them.
GPU_ONLY := cuda-bindings|cuda-pathfinder|cuda-toolkit|nvidia-cuda-cccl|nvidia-cusolver|nvidia-nvjitlink|nvidia-nvtx|triton

setup: $(STAMP)  ## make .venv from the hash-locked requirements.lock (CPU=1: without what only a GPU needs)
$(VENV)/.locked: requirements.lock
	@test -n "$(PYTHON)" || { echo "error: no python3.13, python3.12 or python3.11 in PATH, expected: one of them" >&2; exit 2; }
	@echo "$(VENV) is made with $(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	@echo "installing requirements.lock: $(if $(CPU),5.2,6.6) GB, which takes some minutes"
ifdef CPU
	awk '/^[^ ]/ {kept = !/^($(GPU_ONLY))==/} kept' requirements.lock > $(VENV)/cpu.lock
endif
	$(VENV)/bin/python -m pip install --progress-bar on --disable-pip-version-check --require-hashes \
		$(if $(CPU),--no-deps -r $(VENV)/cpu.lock,-r requirements.lock)
	touch $@
$(STAMP): $(VENV)/.locked pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@test -e .git || dvc config --local core.no_scm true
	touch $@

demo: $(STAMP)  ## all five stages on bundled digits, in .demo/ (one to three minutes)
	@test -e $(DEMO)/dvc.yaml || leanresnet init $(DEMO) --preset demo
	cd $(DEMO) && dvc repro
	@echo && leanresnet results $(DEMO)/results
	@echo && echo "the runs in MLflow, after \`make ui DIR=$(DEMO)\`:" && cd $(DEMO) && leanresnet ui --addresses

repro: $(STAMP)  ## dvc repro in this checkout, on CIFAR-10; then the champion is registered
	dvc repro
	leanresnet sync
	leanresnet champion
	@echo && leanresnet results
	@echo && echo "the runs in MLflow, after \`make ui\`:" && leanresnet ui --addresses

test: $(STAMP)  ## the whole test suite
	python -m pytest --numprocesses 2

test-fast: $(STAMP)  ## the unit tests without the slow ones, for after each edit (one to two minutes)
	python -m pytest --numprocesses 2 -m "not slow" tests/unit tests/test_structure.py

torture: $(STAMP)  ## kill and damage trainings at random (about two hours); ends at the first loss
	PYTHONPATH=tests:tests/integration:tests/unit/jobs python tests/torture.py

team: $(STAMP)  ## PostgreSQL, S3 and MLflow without containers; 1,000 runs and the demo through them
	PYTHONPATH=tests python tests/team.py

bench: $(STAMP)  ## measure the training engine on this machine (6 to 20 minutes on 2 cores)
	python -m bench all

OUT ?= .bench-gpu
bench-gpu: $(STAMP)  ## check and measure a GPU in nine minutes (DATA=data, what `dvc repro split` wrote; OUT=.bench-gpu)
	python -m bench gpu $(DATA) --out $(OUT)

check: $(STAMP)  ## lint, format, types and the structure of the code
	ruff check .
	ruff format --check .
	mypy
	python -m pytest -q tests/test_structure.py

SCALE ?= cpu
experiments: $(STAMP)  ## the questions of experiments/ through DVC's queue (SCALE=cpu|gpu|long, QUESTIONS="depth ...")
	leanresnet experiments run $(QUESTIONS) --scale $(SCALE)

DIR ?= .
MODEL ?= student
# DVC puts each metric's file before its name, which makes the table wider than a terminal.
TABLE := import csv, re, sys, tabulate; head, *rows = csv.reader(sys.stdin); \
	names = [re.sub("([./])", "\\1\n", name.rpartition(":")[2]) for name in head]; \
	print(tabulate.tabulate(rows, names, disable_numparse=True))
exps: $(STAMP)  ## DVC's experiments: parameters, accuracies, changed params (MODEL=student, DIR=a workspace)
	@cd $(DIR) && shown=$$(dvc exp show --csv --precision 4 --only-changed \
		--drop 'Created|typ$$|parent$$|State|Executor|.*/' \
		--keep 'Experiment|rev$$|results/$(MODEL)/test.json:(model/parameters|val/evaluated_accuracy|test/accuracy)$$') \
		&& python -c '$(TABLE)' <<< "$$shown"

ui: $(STAMP)  ## MLflow on 127.0.0.1, open on the results (PORT=5000, DIR=a workspace)
	@cd $(DIR) && leanresnet ui --port $(PORT)

docs: $(STAMP)  ## renew what describes the keys: params.schema.json and docs/params.md
	leanresnet params --format json-schema > params.schema.json
	leanresnet params --format markdown > docs/params.md

format: $(STAMP)  ## format the code and mend what ruff can
	ruff format .
	ruff check --fix .

lock:  ## renew requirements.lock from pyproject.toml (needs uv)
	uv lock --upgrade
	uv export --frozen --all-extras --no-emit-project --no-annotate --no-header -o requirements.lock

audit:  ## known advisories for what requirements.lock names (needs uv and the network)
	uv tool run pip-audit@2.10.1 --strict --require-hashes --disable-pip --requirement requirements.lock

clean:  ## remove what tools left behind; data, models and runs stay, those of the demo too
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	@test ! -e $(DEMO) || echo "$(DEMO) is kept with its runs; to remove the demo: rm -rf $(DEMO)"
