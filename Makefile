# Two commands are the whole set-up: `make demo` and `make test`. Both make .venv first, once. `make` alone lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Two workers more than a small machine has cores: tests of Ray wait half of the time (groups: tests/conftest.py)
PARALLEL := -n 4 --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test cases test-all test-fast browser chromium lint format docs bench gpu clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A stamp is younger than the files that decide what is installed, so nothing is installed twice. The demo needs no tools.
$(VENV)/.package: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.package ## run the built-in sweep to its report in runs/demo (minutes)
	$(BIN)/python -m flops_fit_ray.run --output runs/demo

# lint beside the tests: those of Ray leave a quarter of two cores idle
test: $(VENV)/.installed ## all that CI runs: lint, and a case of every promise
	$(MAKE) --no-print-directory --jobs=2 lint cases

cases: $(VENV)/.installed
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-all: lint ## before a release: the long cases, too
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: $(VENV)/.installed ## tests without Ray that took half a second at most when they ran last, for the loop at the desk
	$(BIN)/python -m pytest $(PARALLEL) -m "not ray and not slow" --fast

# 170 MB that only the tests of the pages need; `make test` runs them where this has been done, and says so where not
$(VENV)/.browser: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	touch $@

chromium: $(VENV)/.browser # and a Chromium, from apt where there is none and one may
	command -v chromium >/dev/null || command -v google-chrome >/dev/null || { apt-get update -qq && apt-get install -qq -y chromium >/dev/null; }

browser: chromium ## the tests of the pages, in a headless Chromium that is brought where there is none
	$(BIN)/python -m pytest tests/test_browser.py

lint: $(VENV)/.installed ## ruff format --check, ruff check, mypy --strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy flops_fit_ray tests benchmarks docs examples/bytes examples/gpu_text
	$(BIN)/mypy examples/lstm

format: $(VENV)/.installed ## format, and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The references and the site's links need no package of ours, so its environment takes seconds
$(VENV)/docs/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/python -m pip install --quiet --constraint constraints.txt mkdocs-material
	touch $@

docs: $(VENV)/docs/.installed ## the site of docs/ in site/, every link and anchor checked
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/python -m mkdocs build --quiet

bench: $(VENV)/.installed ## the quick benchmarks: one step and the fits (benchmarks/README.md has the others)
	$(BIN)/python -m benchmarks.step_cpu --quick
	$(BIN)/python -m benchmarks.fit --quick

gpu: $(VENV)/.installed ## all that only a GPU can tell, in 8 minutes: gpu.json (without one everything is small)
	$(BIN)/python -m benchmarks.gpu

clean: ## remove .venv and caches; sweeps in runs/ stay
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
