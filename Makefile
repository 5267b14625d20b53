# Two commands: `make demo` sets up and runs the whole job, `make test` sets up and runs the tests.
# PYTHON names another interpreter (3.11 or 3.12): make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
# Two at a time, each on one thread: on two cores that is faster than one after the other on two.
TEST := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m pytest -n 2 --dist worksteal

# From source, for its wheels do not exist; without build isolation, which would bring another torch along.
DEEPSPEED := DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(VENV)/bin/python -m pip install --quiet --no-build-isolation "deepspeed>=0.19.8,<0.20"

.PHONY: demo test quick lint setup
setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qllava needs Python 3.11 or 3.12; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e ".[dev]"
	touch $@

# The tests of ZeRO need it; where it cannot be built they are skipped.
$(VENV)/deepspeed: $(VENV)/ready
	$(VENV)/bin/python -m pip install --quiet setuptools wheel ninja
	$(DEEPSPEED) || echo "DeepSpeed could not be installed: the tests of ZeRO will be skipped."
	touch $@

demo: setup
	$(VENV)/bin/qllava demo

test: setup $(VENV)/deepspeed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(TEST)

quick: setup $(VENV)/deepspeed
	$(TEST) -m "not slow"

lint: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
