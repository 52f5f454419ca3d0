# make demo: install and run the main job. make test: install and run every test. Both work on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check format soak studies bench clean
.DEFAULT_GOAL := demo

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11" >&2; echo "hint: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): PyTorch and its CUDA libraries are some 3 GB to download" >&2
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m compileall -q hpcdist
	@touch $@

demo: $(INSTALLED)
	$(BIN)/hpcdist data fetch mnist
	$(BIN)/hpcdist submit --nodes 2 --gpus 1 --backend local --wait

# The tests on a real cluster start the testbed; tests/cluster/conftest.py says when it may install Slurm's packages.
# Two at a time: one waits for Slurm most of the while (tests/conftest.py groups them).
test: $(INSTALLED) check
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

check: $(INSTALLED)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy
	cd testbed && MYPYPATH=. ../$(BIN)/mypy --config-file= --strict cluster testbed
	@$(BIN)/lint-imports --no-cache > /dev/null || { $(BIN)/lint-imports --no-cache; exit 1; }
	$(BIN)/shellcheck --exclude=SC2016 tests/golden/*.sbatch tests/golden/*.sh tests/golden/sites/*.sbatch .ci/run

format: $(INSTALLED)
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

# The full versions of what `make test` cuts short: 50 random faults, 200 submissions. SOAK_SEED repeats a draw.
soak: $(INSTALLED)
	SOAK=1 $(BIN)/python -m pytest -s -m soak tests/cluster

# Every study at its small scale, each to an HTML report. A layout that Slurm refuses is a row there and ends nothing; any
# other trial that did not complete makes it fail, when all have run. A study that could not run at all prints no JSON.
ALL_RAN := import json, sys; sys.exit(bool({one["status"]["state"] for one in json.load(sys.stdin)} - {"COMPLETED", "REFUSED"}))
studies: $(INSTALLED)
	$(BIN)/hpcdist data fetch mnist
	@failed=; for file in $$(grep -lE '^(layouts *=|\[\[layouts\]\])' jobs/*.toml); do \
	  name=$$(basename "$$file" .toml)-small; \
	  $(BIN)/hpcdist study run "$$file" --scale small --wait --json | $(BIN)/python -c '$(ALL_RAN)' || failed="$$failed $$name"; \
	  $(BIN)/hpcdist report "$$name" --html "jobs/studies/$$name/report.html" || exit 1; \
	done; \
	[ -z "$$failed" ] || { echo "error: trials failed in$$failed" >&2; exit 1; }

bench: $(INSTALLED)
	$(BIN)/hpcdist data fetch mnist
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.throughput --data-dir data
	$(BIN)/python -m benchmarks.train --data-dir data
	$(BIN)/python benchmarks/checkpoints.py --data-dir data
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.accounting
	$(BIN)/python -m benchmarks.lint

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
