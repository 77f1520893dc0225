# Two commands: `make demo` tells the whole story, `make test` checks it. Both set up .venv first where it is missing.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
# what is started here stops when make is gone
export OTCLIB_PARENT := $(shell echo $$PPID)

.PHONY: setup demo test lint explorer book figures table ablation dose batch bench clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "otclib needs Python >= 3.11: make PYTHON=python3.12"; exit 1)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[notebooks,test,book,dev]'
	touch $@

demo: setup
	$(BIN)/python -m otclib.demo --out runs/demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check otclib tests benchmarks

explorer: setup  # the transport explorer as a page in the browser; trains its two runs first where they are missing
	cd notebooks && exec ../$(BIN)/python -m otclib.processes voila explorer.ipynb

book: setup  # the chapters and the docstrings as a site, in book/_build
	$(BIN)/python -m sphinx -q -W --keep-going -b html book book/_build && echo "open book/_build/index.html"

figures: setup  # the numbers of the README: three seeds of both systems, half an hour on two cores
	$(BIN)/python -m otclib.seeds --publish

table: setup  # every system against every attack, three seeds: 5 hours on two cores; it resumes, and LIMIT=60 stops it
	$(BIN)/python -m otclib.table --publish $(if $(LIMIT),--limit $(LIMIT)) && $(BIN)/python -m otclib.demo --only 05_all_systems

ablation: setup  # OTCCLIP with one part missing or changed at a time, three seeds: 2 hours on two cores
	$(BIN)/python -m otclib.table --ablation --publish $(if $(LIMIT),--limit $(LIMIT)) && $(BIN)/python -m otclib.demo --only 05_all_systems

dose: setup  # the undefended model on more and more poison, three seeds: 35 minutes on two cores
	$(BIN)/python -m otclib.table --dose $(if $(LIMIT),--limit $(LIMIT)) && $(BIN)/python -m otclib.demo --only 01_poisoning

batch: setup  # chapter 6 for every data set, attack, defence and seed of notebooks/batch.yaml, under Snakemake; it resumes
	cd notebooks && exec ../$(BIN)/python -m otclib.processes snakemake --cores all --rerun-incomplete

bench: setup  # speed against other solvers and against brute force, and the README's section: 20 minutes on two cores
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.transport

clean:
	rm -rf .venv runs book/_build book/notebooks
