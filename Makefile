# Everything below runs from a clean clone with Python 3.10+, Java 17+ and Maven; `make` prints what there is.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
NEED_PYTHON = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	echo "Python 3.10 or later is needed, and $(PYTHON) is not: install it, or name one: make PYTHON=python3.12" >&2; exit 1; }

.PHONY: help
help:  ## print this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(VENV)/.scripts: requirements.txt
	$(NEED_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.development: requirements-dev.txt $(VENV)/.scripts
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.PHONY: demo
demo: $(VENV)/.scripts  ## servers, set-up, producer, consumer and test_cdc.py, then all stopped again
	@sh stack/demo.sh $(RUN)

.PHONY: lose
lose: $(VENV)/.scripts up  ## the plain design loses rows, ours does not: side by side, live, at most a minute
	@$(RUN) -m lose

.PHONY: recordings
recordings: $(VENV)/.scripts up  ## record test_cdc.py, status and lose at work, for README: docs/recordings/
	$(RUN) -m harness.recordings

.PHONY: tour
tour: $(VENV)/.scripts up  ## run all commands of docs/tour.md, and write their real output there
	$(RUN) -m harness.tour

.PHONY: load
load: $(VENV)/.scripts  ## invented employees and 50 changes a second until Ctrl-C, so that there is something to watch
	@$(RUN) load.py --rows 5000 --rate 50

.PHONY: test
test: lint  ## lint, types, and the suite on real servers: first what needs the machine alone; within 15 minutes
	$(RUN) -m pytest -m "alone and not own_servers and not long"
	$(RUN) -m pytest -n 2 --dist loadfile -m "alone and own_servers and not long"
	$(RUN) -m pytest -n 4 -m "not alone and not long and not compose"

.PHONY: lint
lint: $(VENV)/.development  ## ruff and mypy --strict
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy .

COMPILE = $(VENV)/tools/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-find-links \
	--custom-compile-command "make requirements"
$(VENV)/tools/bin/%: | $(VENV)/.scripts
	$(PYTHON) -m venv $(VENV)/tools
	$(VENV)/tools/bin/python -m pip install --quiet --disable-pip-version-check $*

.PHONY: requirements audit
requirements: $(VENV)/tools/bin/uv  ## make requirements*.txt, with hashes, of requirements*.in
	$(COMPILE) --python-version 3.10 requirements.in -o requirements.txt
	$(COMPILE) --python-version 3.11 requirements-dev.in -o requirements-dev.txt
audit: $(VENV)/tools/bin/pip-audit  ## look up known vulnerabilities of what requirements*.txt name; asks PyPI
	$(VENV)/tools/bin/pip-audit --require-hashes --disable-pip -r requirements.txt -r requirements-dev.txt

.PHONY: check-deploy
check-deploy: $(VENV)/tools/bin/kubernetes-validate  ## deploy/kubernetes.yml against Kubernetes' own schemas
	$(VENV)/tools/bin/kubernetes-validate --strict deploy/kubernetes.yml

$(VENV)/.bench: requirements-bench.txt $(VENV)/.scripts
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	@touch $@

.PHONY: bench
bench: $(VENV)/.bench up  ## speed, latency and cost beside native replication, under 10 minutes; then the plots in docs/
	$(RUN) -m bench.catch_up
	$(RUN) -m bench.capture
	$(RUN) -m bench.growth
	$(RUN) -m bench.latency
	$(RUN) -m bench.idle
	$(RUN) -m bench.pruning
	$(RUN) -m bench.plot

.PHONY: prove
prove: $(VENV)/.development up  ## every interleaving of models that are tied to the code, and what breaks others: 90 seconds
	$(RUN) -m proofs

.PHONY: up down purge clean
up:  ## the four servers without Docker, at docker-compose.yml's addresses
	$(NEED_PYTHON)
	@$(PYTHON) stack/servers.py up
down:  ## stop what `make up` started; the data stays
	$(NEED_PYTHON)
	@$(PYTHON) stack/servers.py down
purge:  ## stop what `make up` started, and remove its data and logs
	$(NEED_PYTHON)
	@$(PYTHON) stack/servers.py down --purge
clean:  ## stop what was started here, and remove stack/.state, .venv and caches; Maven's cache stays
	$(NEED_PYTHON)
	@$(PYTHON) -m stack.clean

.PHONY: test-compose
test-compose: $(VENV)/.development  ## both compose files on a real Docker engine, on docker-compose.yml's ports
	$(RUN) -m pytest -m compose

.PHONY: chaos faults
chaos: $(VENV)/.development  ## faults of all kinds under load for 4 minutes, in sync 10 s after each; wants a quiet machine
	$(RUN) -m tests.chaos --seconds 240
faults: $(VENV)/.development  ## what takes minutes: chaos, outages of a minute, 500 random examples, a million rows
	$(RUN) -m tests.chaos --seconds 180 --limit 30
	$(RUN) -m pytest -m "long and alone"
	$(RUN) -m pytest -n 3 -m "long and not alone"
