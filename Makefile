# `make demo` and `make test` do all their own set-up; `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help demo test check lint bench lock clean

python := .venv/bin/python
workers := 4
faults := tests/scenarios/test_faults.py
pure_tests := tests/core $(wildcard tests/test_*.py)
# Processors that others use as well show what a test takes for granted. What failed is named above, and must pass alone.
again := $(python) -m pytest -q --last-failed --last-failed-no-failures none

help: ## say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: ## run a whole pair on this machine, in the foreground
	@tools/setup demo
	@exec .venv/bin/clojarsd demo

test: ## run all tests, several at a time since most wait; then the fault matrix, two rows at a time
	@tools/setup test
	$(python) -m pytest -q -n $(workers) --dist worksteal --ignore $(faults) || { [ $$? = 1 ] && $(again) --ignore $(faults); }
	$(python) -m pytest -q -n 2 $(faults) || { [ $$? = 1 ] && $(again) $(faults); }

check: lint ## the fast loop: lint, types, pure tests
	$(python) -m pytest -q -m "not slow and not real" $(pure_tests)

lint: ## style and types
	@tools/setup lint
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

bench: ## measure
	@tools/setup bench
	$(python) -m bench

lock: ## write requirements.lock anew from pyproject.toml; UPGRADE=1 takes newer versions
	tools/lock $(if $(UPGRADE),--upgrade)

clean: ## remove everything that was made here, .venv too
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
