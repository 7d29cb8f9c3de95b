# Two commands: `make demo` and `make test`. Each sets up what it needs in .venv first.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
ROOMS := tests/models tests/training tests/sampling tests/api/test_many_sizes.py

.PHONY: demo test coverage prove browser gpu docs lint setup clean
setup: .venv/ready
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/python research/demo.py --out demo

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

coverage: setup  # a benchmark forks workers, which end badly under coverage and Python 3.11
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report term --ignore tests/benchmarks

prove: setup
	$(BIN)/python -m pytest -m prove
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --family sd2 $(ROOMS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --family sdxl $(ROOMS)

browser: setup  # needs a Chromium: Debian's, ONBRAND_BROWSER, or `playwright install chromium`
	$(BIN)/python -m pip install --quiet playwright
	$(BIN)/python -m pytest -m prove tests/ui/test_browser.py

gpu: setup
	$(BIN)/python benchmarks/gpu.py

docs: setup
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/python research/reference.py
	$(BIN)/python research/pages.py
	$(BIN)/mkdocs build --strict

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo
