# Two commands do everything on a fresh Debian machine with python3 and make: `make demo` and `make test`.

SHELL := /bin/sh
PY := .venv/bin/python
PYTEST := $(PY) -m pytest
RUN := .venv/.installed-run
DEV := .venv/.installed-dev
REQUIRES := pyproject.toml scripts/venv

# Tests that measure have the machine to themselves. Those with real servers share it two at a time, all others as many as it has
# cores.
ALONE := measured
REAL := mta
TOGETHER := -n auto --dist worksteal
IN_TWO := -n 2 --dist worksteal

.PHONY: help demo test compiled lint types unit fuzz soak bench format mtas clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## */\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(RUN)  ## install into .venv and show the main job on embedded backends
	.venv/bin/smtplb demo

test: $(DEV) mtas lint types  ## everything: environment, mail servers (as root on Debian), lint, types, all tests
	$(PYTEST) $(TOGETHER) --hypothesis-profile=ci -m "not $(REAL) and not $(ALONE) and not slow"
	$(PYTEST) $(IN_TWO) --hypothesis-profile=ci -m "$(REAL) and not $(ALONE) and not slow"
	$(PYTEST) --hypothesis-profile=ci -m "$(ALONE) and not slow"

compiled: $(DEV)  ## build the way of a message as C extensions (needs gcc and Python headers) and test them
	scripts/compiled build
	scripts/compiled test $(TOGETHER) --hypothesis-profile=dev tests/smtp tests/policy tests/dataplane tests/protocol tests/failover \
		-m "not $(REAL) and not $(ALONE) and not slow"

unit: $(DEV)  ## the tests that need no real mail server, with fewer examples: a minute
	$(PYTEST) $(TOGETHER) --hypothesis-profile=dev -m "not $(REAL) and not $(ALONE) and not slow"

fuzz: $(DEV)  ## laws and campaigns with 50 times the examples and seeds, drawn anew each time: an hour or more
	$(PYTEST) $(TOGETHER) --hypothesis-profile=fuzz -m "(hypothesis or campaign) and not $(REAL) and not $(ALONE)" -o faulthandler_timeout=0

soak: $(DEV) mtas  ## the long forms of tests with real mail servers, then half an hour of load: is memory flat?
	$(PYTEST) -m slow
	$(PY) -m bench.soak

bench: $(DEV) mtas  ## smtplb, compiled where gcc is, beside HAProxy, nginx, Haraka and nothing: half an hour on a quiet machine
	@scripts/peers
	@if command -v gcc >/dev/null; then scripts/compiled build && scripts/compiled python -m bench; \
	else echo "no gcc: smtplb is measured as Python"; $(PY) -m bench; fi

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
