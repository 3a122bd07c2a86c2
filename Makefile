# Every target sets itself up: it needs Python 3.11 or newer, and nothing else.

PYTHON ?= python3
ARGS ?=
# Test processes at a time; most of the tests' time is spent on waiting for processes to start.
JOBS ?= 3
# Printed with the command that uses it, so that a failure of a property test can be repeated.
SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
# How long `make chaos` causes faults, and `make fuzz` searches in each target.
SECONDS ?= 60

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST := $(VENV)-lowest
LOWEST_TESTS := tests/unit/proto tests/unit/sidecar $(foreach name,daemon drain export run status tail \
  wandb_offline,tests/integration/test_$(name).py) \
  $(foreach name,media_rendering structured_values tensorboard_values, \
  --ignore tests/unit/sidecar/test_$(name).py) \
  --deselect tests/unit/sidecar/test_samplers.py::test_its_process_is_small \
  --deselect tests/integration/test_drain.py::test_waits_for_what_the_deriver_makes
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
SHELL_FILES := launch_tensorboard.sh .ci/run deploy/slurm/training.sbatch

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-lowest chaos chaos-long check fuzz bench bench-gpu pictures generated venv clean
.PHONY: check-lint check-format check-mypy check-pyright check-imports check-shell

help: ## list these targets
	@echo "usage: make TARGET [ARGS='...'] [PYTHON=python3]"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) \
	  | while IFS='|' read -r name text; do printf '  %-11s %s\n' "$$name" "$$text"; done

demo: $(STAMP) ## train a small model with the sidecar beside it (ARGS go to the trainer)
	$(BIN)/sidestep run -- $(BIN)/python client/examples/digits_jepa.py $(ARGS)

test: $(STAMP) ## run the tests, less the slow, the benchmarks and those for a GPU (ARGS go to pytest)
	$(BIN)/python -m pytest -m "not (bench or gpu or slow)" -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	  --hypothesis-seed=$(SEED) $(ARGS)

# TensorBoard before 2.21 needs pkg_resources, which newer setuptools lack. What old versions warn of, and
# how much memory they take, is theirs. Without torch, whose oldest builds are gigabytes, and the tests
# that need it: the daemon and the command line are tested.
test-lowest: $(STAMP) ## run the daemon's tests with the oldest versions that pyproject.toml allows
	@$(BIN)/python -c 'import uv' 2>/dev/null || $(BIN)/python -m pip install -qq --disable-pip-version-check uv
	$(BIN)/python -m uv venv -q --clear -p $(BIN)/python $(LOWEST)
	$(BIN)/python -m uv pip install -q -p $(LOWEST)/bin/python --resolution lowest-direct \
	  -e '.[all]' setuptools==80.9.0
	$(BIN)/python -m uv pip freeze -q -p $(LOWEST)/bin/python --exclude-editable > $(LOWEST)/versions.txt
	$(BIN)/python -m uv pip install -q -p $(LOWEST)/bin/python -c $(LOWEST)/versions.txt \
	  hatchling hypothesis import-linter packaging pytest pytest-timeout pytest-xdist
	$(LOWEST)/bin/python -m pytest -m "not (bench or gpu or slow)" -W default -n $(JOBS) --dist loadfile \
	  $(LOWEST_TESTS) $(ARGS)

chaos: $(STAMP) ## random faults over trainers and a daemon for SECONDS, drawn from SEED; then the books
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) --seed $(SEED) $(ARGS)

chaos-long: $(STAMP) ## the long tests of faults: many kills, seeds and gigabytes (ARGS go to pytest)
	$(BIN)/python -m pytest tests/chaos -m slow $(ARGS)

check: check-lint check-format check-mypy check-pyright check-imports check-shell ## lint, format, types, imports

fuzz: $(STAMP) ## search inputs that break a reader, SECONDS for each (ARGS: --keep, targets)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.chaos.fuzz --seconds $(SECONDS) $(ARGS)

bench: $(STAMP) ## measure the figures of the README (ARGS go to the benchmark)
	$(BIN)/python -m tests.bench $(ARGS)

bench-gpu: $(STAMP) ## measure on a GPU: a ViT-B/16's step (with ARGS), gradients of 302 M parameters
	$(BIN)/python -m tests.gpu.bench_step $(ARGS)
	$(BIN)/python -m tests.gpu.bench_parameters

pictures: $(STAMP) ## take the README's pictures of the demo: tail in tmux, TensorBoard in Chromium
	$(BIN)/python -m tests.browser.pictures $(ARGS)

generated: $(STAMP) ## renew what is generated: the settings' table, the wire's test vectors
	$(BIN)/python -m tests.support.generated

venv: $(STAMP) ## make or renew .venv, where all the others run

clean: ## remove what make and the tools created (results/ stays)
	rm -rf $(VENV) $(LOWEST) build dist htmlcov .coverage .coverage.* .benchmarks .hypothesis \
	  .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find proto client sidecar tests -type d -name __pycache__ -prune -exec rm -rf {} +

check-lint: $(STAMP)
	$(BIN)/ruff check .

check-format: $(STAMP)
	$(BIN)/ruff format --check .

check-mypy: $(STAMP)
	$(BIN)/mypy

check-pyright: $(STAMP)
	$(BIN)/pyright

check-imports: $(STAMP)
	$(BIN)/lint-imports

check-shell: $(STAMP)
	$(BIN)/shellcheck $(SHELL_FILES)

# An existing .venv is kept when it works: a change of pins installs only what changed.
$(STAMP): pyproject.toml constraints.txt
	@'$(PYTHON)' -c '' 2>/dev/null || { \
	  echo "sidestep needs Python 3.11 or newer, and '$(PYTHON)' does not run: install it, or name another with make PYTHON=..." >&2; exit 1; }
	@'$(PYTHON)' -c '$(NEW_ENOUGH)' || { \
	  echo "sidestep needs Python 3.11 or newer, and '$(PYTHON)' is $$('$(PYTHON)' -V 2>&1): name a newer one with make PYTHON=..." >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: install its venv module (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(BIN)/python -c 'import pip; $(NEW_ENOUGH)' 2>/dev/null || '$(PYTHON)' -m venv --clear $(VENV)
	@echo "installing sidestep and its tools into $(VENV): a minute or two, once"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
