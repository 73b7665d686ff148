# `make demo` trains, scores and samples on real photographs; `make test` checks everything. Both make .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv

# Where the browser's package can be installed, the tests in a browser must run; elsewhere they are skipped without one.
APT := $(and $(filter 0,$(shell id -u)),$(shell command -v apt-get))
BROWSER := $(if $(APT),REQUIRE_BROWSER=1)

.PHONY: demo test chromium clean

demo: $(VENV)/.demo
	$(VENV)/bin/python scripts/demo.py

# One thread for each of two processes: sums keep one order, and the cores are not oversubscribed.
test: $(VENV)/.dev $(VENV)/.peer chromium
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	OMP_NUM_THREADS=1 $(BROWSER) $(VENV)/bin/python -m pytest -n 2 --dist loadfile

chromium:
ifdef APT
	@command -v "$${CHROMIUM:-chromium}" || command -v chromium-browser || command -v google-chrome || \
		(apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium)
endif

$(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	touch $@

# The peer of the benchmark, without the many packages that its own scripts need.
$(VENV)/.peer: $(VENV)/.dev
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps jet-pytorch
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, got " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) demo build src/*.egg-info
