# Everything a newcomer needs: `make run` and `make test`. Each target sets up what it needs, once.
#
#   run     start in the foreground with the web chat      test    the test suite
#   check   format, lint, types, import floors             exe     dist/spacebot, one file
#   bench   print the figures (DATA=LoCoMo's file)         quick   the part of the tests that starts no other programs
#   release the executable packed hard, with checksums and a list of its parts
#   clean   remove what was built here

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MODEL  := .model/all-minilm-l6-v2/manifest.json
PARALLEL := --ignore=tests/executable --ignore=tests/flows -n auto --maxprocesses=4 --dist worksteal
PIP    := -m pip install --quiet --disable-pip-version-check --require-hashes

.PHONY: run test quick check exe release smoke bench clean venv model

run: venv model
	@$(BIN)/python -m spacebot start --foreground

quick: venv model
	@$(BIN)/python -m pytest -q $(PARALLEL) -m "not slow"

test: venv model
	@$(BIN)/python -m pytest -q $(PARALLEL) -m "not slow"
	@$(BIN)/python -m pytest -q $(PARALLEL) -m slow   # browsers, daemons, coding agents
	@$(BIN)/python -m pytest -q tests/flows   # whole programs on the real clock, which need the machine to themselves

check: venv
	@$(BIN)/ruff format --check --quiet spacebot tests build || { echo "run: $(BIN)/ruff format spacebot tests build"; exit 1; }
	@$(BIN)/ruff check --quiet spacebot tests build
	@$(BIN)/flake8-async --enable ASYNC1,ASYNC2 --disable ASYNC103,ASYNC104,ASYNC109,ASYNC114,ASYNC124,ASYNC128 \
		$$(find spacebot -name '*.py')
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

exe: venv model
	@$(BIN)/python build/executable/make.py

release: venv model
	@$(BIN)/python build/release.py

smoke: exe
	@SPACEBOT_EXE=$(CURDIR)/dist/spacebot $(BIN)/python -m pytest -q tests/executable tests/flows/test_init.py tests/flows/test_platforms.py tests/flows/test_hands.py

bench: venv model
	@$(BIN)/python -m tests.bench
	@$(BIN)/python -m tests.bench platforms
	@$(BIN)/python -m tests.bench memory
	@$(BIN)/python -m tests.bench thresholds
	@$(BIN)/python -m tests.bench kills
	@$(BIN)/python -m tests.bench cron
	@$(BIN)/python -m tests.bench hands
	@$(BIN)/python -m tests.bench web
	@$(BIN)/python -m tests.bench routing
	@$(BIN)/python -m tests.bench usage
	@$(BIN)/python -m tests.bench api
	@$(BIN)/python -m tests.bench reload
	@if [ -n "$(DATA)" ]; then $(BIN)/python -m tests.bench recall --data "$(DATA)"; \
	else echo "recall: not measured; name LoCoMo's file: make bench DATA=…/locomo10.json"; fi

venv: $(BIN)/.ready

$(BIN)/.ready: build/requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Spacebot needs Python 3.11, 3.12 or 3.13; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV) (once, a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) -r build/requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

model: $(MODEL)

$(MODEL): build/model/export.py build/requirements/model.txt
	@echo "making the embedding model (once, a minute)"
	@$(PYTHON) -m venv .venv-model
	@.venv-model/bin/python $(PIP) -r build/requirements/model.txt
	@.venv-model/bin/python build/model/export.py --output $(dir $(MODEL))
	@rm -rf .venv-model
	@touch $@

clean:
	rm -rf $(VENV) .venv-model .model .freeze dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
