# The two commands a newcomer needs: `make demo` and `make test`. Each makes .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check test-gpu notebooks benchmarks probes organism clean

demo: .venv/installed  ## run the quickstart study and print its table
	$(BIN)/workbench run studies/quickstart.yaml

test: .venv/installed-dev  ## all tests, the notebooks among them
	$(BIN)/python -m pytest

check: .venv/installed-dev  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test-gpu: .venv/installed-dev  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

notebooks: .venv/installed-dev  ## execute every notebook
	$(BIN)/python -m pytest tests/test_notebooks.py

benchmarks: .venv/installed-dev  ## ratios to a floor measured in the same process; writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks --model llama-1b --part scores --rows 8 --repeats 1

probes: .venv/installed  ## fit every shipped behavior on the bundled models; prints the table of probes/README.md
	$(BIN)/python probes/measure.py data/organism/full data/organism/retain data/models/stories260K data/models/slm4096

organism: .venv/installed  ## train the bundled models again (half an hour on two cores)
	$(BIN)/workbench organism

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,notebook,influence,lm-eval,peft]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps kronfluence  # its torchvision breaks transformers
	touch $@

clean:
	rm -rf .venv runs
