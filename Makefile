# `make demo` and `make test` need nothing but Python >= 3.11 and make: they set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-slow test-browser soak hostile lint bench docs clean

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("ViMoE needs Python 3.11 or newer: make PYTHON=python3.11") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

demo: setup
	$(BIN)/vimoe demo

test: setup
	$(BIN)/python -m pytest -n auto

# With V-MoE's flax and PEFT, which `make test` does without.
test-slow: setup
	$(BIN)/python -m pip install --quiet --editable '.[dev,interop]'
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest tests/vit/test_peft.py

# The browser is Debian's `chromium`, installed if it is missing (which takes root).
test-browser: setup
	command -v chromium >/dev/null || apt-get install --yes chromium
	$(BIN)/python -m pip install --quiet --editable '.[dev,browser]'
	$(BIN)/python -m pytest -m browser

soak: setup
	$(BIN)/python -m pytest -m slow -s tests/training/test_kill.py tests/study/test_kill.py

hostile: setup
	$(BIN)/python -m pytest -m hostile -s tests/hostile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/moe_layer.py
	$(BIN)/python benchmarks/moe_layer.py --experts-scaling --dims 384 --tokens 32896
	$(BIN)/python benchmarks/inference.py

# Nothing but the packages is fetched: the site can be read without a network.
docs: setup
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
