# Two commands: `make demo` sets up and runs the whole job, `make test` sets up and runs the tests.
# PYTHON names another interpreter (3.11 or 3.12): make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
# Two at a time, each on one thread: on two cores that is faster than one after the other on two.
TEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal

.PHONY: demo test quick lint setup
setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qllava needs Python 3.11 or 3.12; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: setup
	$(VENV)/bin/qllava demo

test: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(TEST)

quick: setup
	$(TEST) -m "not slow"

lint: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
