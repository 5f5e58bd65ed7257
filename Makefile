# On a fresh machine: `make story` trains a small model and prints three stories, `make write` writes another with it,
# `make page` serves a page to write on, `make test` checks all, `make flags` writes docs/flags.md after a change of the
# flags, and `make dist` makes the wheel and the source archive. `make lowest` runs the quick tests in .venv-lowest, with
# the oldest versions that requirements.txt and the extras bpe, export and serve admit, all but torch's.
# Each sets up its environment itself, and uses it again the next time.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: story write page test lowest flags dist format clean

story: .venv/installed
	$(BIN)/python train.py --preset tiny --max_minutes 2.75 --out_dir runs/story --overwrite
	@for prompt in "Once upon a time" "One sunny morning, a brave girl named Mia" "There was once a little fox"; do \
	  echo; $(BIN)/python generate.py --model_path runs/story/best_model.pt --prompt "$$prompt" --seed 1 || exit 1; done

write: .venv/installed | runs/story/best_model.pt
	$(BIN)/python generate.py --model_path runs/story/best_model.pt --prompt "Once upon a time"

page: .venv/installed-serve | runs/story/best_model.pt
	$(BIN)/python serve.py --model_path runs/story/best_model.pt

runs/story/best_model.pt:
	$(MAKE) story

test: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/pytest -n auto $(TESTS)

flags: .venv/installed
	$(BIN)/python -m tests.readme.flags

lowest: .venv-lowest/installed
	.venv-lowest/bin/pytest -n auto $(TESTS)

dist: .venv/installed-dev
	rm -rf dist
	$(BIN)/python -m build

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-lowest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-serve: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[serve]"
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

.venv-lowest/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv-lowest
	sed -n '/^bpe/,/^serve/p' pyproject.toml | cat requirements.txt - | grep -v '^torch>' | \
	  grep -oE '[a-z0-9-]+>=[0-9.]+' | sed 's/>=/==/' >.venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c .venv-lowest/constraints.txt -e ".[dev]"
	touch $@
