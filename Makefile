# Everything below runs from a clean clone with Python 3.10+, Java 17+ and Maven; `make` prints what there is.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python

.PHONY: help
help:  ## print this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(VENV)/.scripts: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.development: requirements-dev.txt $(VENV)/.scripts
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.PHONY: demo
demo: $(VENV)/.scripts  ## servers, set-up, producer, consumer and test_cdc.py, then all stopped again
	@sh stack/demo.sh $(RUN)

.PHONY: test
test: lint  ## lint, types, and the test suite on real servers
	$(RUN) -m pytest

.PHONY: lint
lint: $(VENV)/.development  ## ruff and mypy --strict
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy .

.PHONY: up down
up:  ## the four servers without Docker, at docker-compose.yml's addresses
	$(PYTHON) stack/servers.py up
down:  ## stop what `make up` started
	$(PYTHON) stack/servers.py down
