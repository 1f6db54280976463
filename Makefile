# Two commands do everything on a fresh Debian machine with python3 and make: `make demo` and `make test`.

SHELL := /bin/sh
PY := .venv/bin/python
RUN := .venv/.installed-run
DEV := .venv/.installed-dev
REQUIRES := pyproject.toml scripts/venv

.PHONY: help demo test lint types unit format mtas clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## */\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(RUN)  ## install into .venv and show the main job on embedded backends
	.venv/bin/smtplb demo

test: $(DEV) mtas lint types  ## everything: environment, mail servers (as root on Debian), lint, types, all tests
	$(PY) -m pytest

unit: $(DEV)  ## the tests that need no real mail server
	$(PY) -m pytest -m "not mta"

lint: $(DEV)  ## ruff: rules and format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: $(DEV)  ## mypy --strict
	.venv/bin/mypy

format: $(DEV)  ## let ruff repair format and what else it can
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

mtas:  ## install Postfix, Exim, Sendmail, HAProxy, nginx, swaks for the tests (root, Debian)
	@scripts/mtas

clean:  ## remove the environment, caches and builds
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment anew whenever what it is made from has changed.
$(RUN): $(REQUIRES)
	scripts/venv run

$(DEV): $(REQUIRES)
	scripts/venv dev
