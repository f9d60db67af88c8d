# Everything runs from .venv, which is made when it is needed; nothing has to be activated.
#   make demo [FID_WEIGHTS=file]   the pipeline from raw scans to a registered model, on phantoms
#   make test | test-all           the tests | also those that take minutes
#   make lint                      style, types, Dockerfile
#   make lock                      requirements.lock anew, from a clean environment
#   make proof                     short trainings against a known truth → docs/results.md (an hour on 2 cores; continues)
#   make proof-full [GPU=1]        the same with all misalignments, ablations and seeds (hours on 2 cores)
#   make figures                   the README's table, from the reports of the last demo
#   make screenshots               pictures of `mlflow ui` and the report
#   make wrong-inputs              docs/wrong-inputs.md, from the tests that try them
#   make reference                 docs/reference, from the code
#   make clean                     what can be made again: the environment, caches (never data, models or runs)
PYTHON ?= python3
WORKERS ?= 2
ENV := .venv
BIN := $(ENV)/bin
STAMP := $(ENV)/.installed
# for what the commands below start themselves
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

# The versions that `make lock` starts from. torch stands in one command with what depends on it: a later, unpinned
# install may replace it by another build.
TORCH := torch==2.13.0 torchvision==0.28.0

.PHONY: env demo proof proof-full test test-all lint lock clean figures screenshots wrong-inputs reference

env: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python %d.%d found, 3.11 or newer expected: make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(ENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP)
	$(if $(FID_WEIGHTS),cp -- "$(FID_WEIGHTS)" weights/fid_inception.pth)
	mkdir -p .equisynth && touch .equisynth/demo-started
	$(BIN)/dvc repro
	$(BIN)/dvc metrics show
	@$(BIN)/python scripts/timings.py --since .equisynth/demo-started
	@echo "report: reports/index.html"
	@echo "model: models:/ixi@champion; its runs: $(BIN)/mlflow ui"

proof proof-full: export PROOF_DEVICE := $(if $(GPU),cuda,cpu)
proof proof-full: export PROOF_JOBS := $(if $(GPU),8,$(WORKERS))
proof: PART := short
proof-full: PART := full
proof proof-full: $(STAMP)
	$(if $(FID_WEIGHTS),cp -- "$(FID_WEIGHTS)" weights/fid_inception.pth)
	$(BIN)/dvc repro proof/dvc.yaml:$(PART)
	$(BIN)/equisynth proof page --part $(PART)
	@echo "docs/results.md; its runs: $(BIN)/mlflow ui"

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-all: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "slow or not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) ".[pipeline,dev]"
	build/lock/bin/python scripts/lock.py > build/requirements.lock
	mv build/requirements.lock requirements.lock
	rm -rf build/lock

figures: $(STAMP)
	python scripts/figures.py --write README.md

screenshots: $(STAMP)
	$(BIN)/python scripts/screenshots.py

wrong-inputs: $(STAMP)
	WRITE_WRONG_INPUTS=1 $(BIN)/python -m pytest tests/test_wrong_inputs.py

reference: $(STAMP)
	$(BIN)/python scripts/reference.py

clean:
	rm -rf $(ENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
