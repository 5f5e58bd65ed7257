# Two commands on a fresh machine: `make story` trains a small model and prints three stories, `make test` checks all.
# Both set up .venv themselves, and use it again the next time.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: story test format clean

story: .venv/installed
	$(BIN)/python train.py --preset tiny --max_minutes 2.75 --out_dir runs/story --overwrite
	@for prompt in "Once upon a time" "One sunny morning, a brave girl named Mia" "There was once a little fox"; do \
	  echo; $(BIN)/python generate.py --model_path runs/story/best_model.pt --prompt "$$prompt" --seed 1 || exit 1; done

test: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest $(TESTS)

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@
