# `make demo` trains, scores and samples on real photographs, `make test` checks everything but TPUs, and `make check`
# checks the essentials in less than a minute. `make docs` builds the site. All four create .venv first. `make test-xla`
# checks the path of TPUs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv

# The browser tests must run where the browser can be installed; elsewhere they are skipped without one.
APT := $(and $(filter 0,$(shell id -u)),$(shell command -v apt-get))
BROWSER := $(if $(APT),REQUIRE_BROWSER=1)

.PHONY: demo docs test suite check lint style types chromium test-xla clean

demo: $(VENV)/.demo
	$(VENV)/bin/python scripts/demo.py

# A warning, such as one of a broken link or an unknown name, fails the build.
docs: $(VENV)/.docs
	$(VENV)/bin/python -m mkdocs build --strict

# One thread in each process keeps the order of sums. Three processes occupy two cores, since tests wait for servers and
# browsers a good part of their time.
PYTEST := $(VENV)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# mypy takes half a minute without its cache. It runs beside the tests, which sometimes wait, not before them.
test: style $(VENV)/.peer chromium
	$(MAKE) --no-print-directory --jobs 2 types suite

# The tests start dozens of processes, which would all compile the package where the environment forbids bytecode.
suite:
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BROWSER) $(PYTEST)

check: lint
	OMP_NUM_THREADS=1 $(PYTEST) tests/test_parity.py tests/test_bijection.py tests/test_layering.py

lint: style types

style: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

chromium:
ifdef APT
	@command -v "$${CHROMIUM:-chromium}" || command -v chromium-browser || command -v google-chrome || \
		(apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium)
endif

$(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	touch $@

# The benchmark's peer, without the many packages that its own scripts need.
$(VENV)/.peer: $(VENV)/.dev
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps jet-pytorch
	touch $@

# The checks of TPUs, on the CPU runtime of torch_xla. Its environment takes 8 GB, since torch 2.9 needs NVIDIA's
# packages to be imported.
test-xla: $(VENV)-xla/.installed
	PJRT_DEVICE=CPU OMP_NUM_THREADS=1 $(VENV)-xla/bin/python -m pytest tests/xla

$(VENV)-xla/.installed: pyproject.toml constraints-tpu.txt
	$(PYTHON) -m venv $(VENV)-xla
	$(VENV)-xla/bin/python -m pip install --quiet --constraint constraints-tpu.txt --editable ".[train]" \
		torch_xla scikit-learn pytest
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, got " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(VENV)-xla demo site build dist src/*.egg-info
