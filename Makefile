# Two commands do everything: `make run` and `make test`. Both create .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# test files at a time
JOBS ?= 2
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt --override overrides.txt

.PHONY: run demo test check lint types bench docs constraints clean
.DEFAULT_GOAL := run

run: $(VENV)/.installed  ## segment demo/images with the bundled model
	$(BIN)/python tools/infer.py demo/images --method proxyclip --refine sam --encoder bundled \
		--opts short_side=224 crop=112 stride=56 --classes demo/classes.txt -o out/demo

demo: $(VENV)/.installed-demo  ## the page in a browser, at http://127.0.0.1:7860
	$(BIN)/python demo/app.py

test: $(VENV)/.installed-dev  ## the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: lint types test  ## what CI runs

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## ratios against the naive way
	$(BIN)/python benchmarks/labels.py

docs: $(VENV)/.installed-dev  ## measure again and rewrite docs/results.md
	$(BIN)/python tools/test.py --ladder clip maskclip sclip clearclip naclip rgb-control proxyclip clip-dinoiser \
		sc-clip corrclip trident --keep out/ladder --write docs/results.md --picture docs/images/ladder.jpg

constraints: $(VENV)/.installed-dev  ## newest versions that fit pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra all --extra dev --override overrides.txt --python-version 3.11 \
		--no-annotate --no-header --quiet --upgrade -o constraints.txt

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

$(VENV)/.installed: $(BIN)/uv pyproject.toml constraints.txt overrides.txt
	@echo "Installing ovseg into $(VENV) (torch included: up to a few minutes the first time) ..."
	$(INSTALL) --editable '.[heif]'
	@touch $@

$(VENV)/.installed-demo: $(BIN)/uv pyproject.toml constraints.txt overrides.txt
	@echo "Installing ovseg and gradio into $(VENV) (a few minutes the first time) ..."
	$(INSTALL) --editable '.[heif,demo]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(BIN)/uv pyproject.toml constraints.txt overrides.txt
	@echo "Installing ovseg and its development tools into $(VENV) (a few minutes the first time) ..."
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-demo

clean:
	rm -rf $(VENV) out build *.egg-info
