# `make demo` tells the whole story, `make test` checks the parts, `make test-all` everything. Each sets up what it lacks.
PYTHON ?= python3
BIN := .venv/bin
SHELL := bash
.SHELLFLAGS := -o pipefail -c
export HF_HUB_OFFLINE ?= 1
# what is started here stops when make is gone
export OTCLIB_PARENT := $(shell echo $$PPID)

# pip installs what $(1) names and prints one line for each file of 10 MB or more; its errors are shown whole
BIG := (Downloading|Using cached) [A-Za-z0-9_.]+-[^ ]+ \([0-9]{2,}\.[0-9]+ MB\)|Installing collected packages
PINS = --constraint constraints.txt
install = $(BIN)/python -m pip install --progress-bar off --disable-pip-version-check $(PINS) \
	--editable '.[$(1)]' | { grep --line-buffered -oE '$(BIG)' || true; }

.PHONY: setup demo test test-slow test-all deps lint explorer book figures table ablation controls dose worlds six batch bench throughput clean

setup: .venv/.ready  # what the demo, the notebooks and the explorer need; the other commands add their own tools

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "otclib needs Python >= 3.11: make PYTHON=python3.12"; exit 1)
	@echo "Setting up .venv, once: PyTorch and what the notebooks need, about 3.3 GB to download and 7 GB on disk."
	@echo "On Linux most of it is the CUDA build of PyTorch, which PyPI has no smaller one of; it runs without a GPU, too."
	@$(PYTHON) -m venv .venv
	@$(call install,notebooks)
	@touch $@ && echo "Set up."

.venv/.%: .venv/.ready  # an extra of pyproject.toml by its name: test, dev, book, batch, cluster, bench
	@echo "Installing what 'make $(or $(MAKECMDGOALS),setup)' needs besides: the extra '$*' of pyproject.toml."
	@$(call install,$*)
	@touch $@

WORLD = scenes
demo: setup  # WORLD=emoji-scenes or WORLD=emoji: on drawings by six artists, which npm fetches
	$(BIN)/python -m otclib.experiments.demo --world $(WORLD) --out runs/demo$(patsubst %,-%,$(filter-out scenes,$(WORLD)))

test: .venv/.test  # what is quick: no notebook, no browser, no whole table
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"  # two files at a time

test-slow: .venv/.test .venv/.book .venv/.batch .venv/.cluster  # the rest
	$(BIN)/python -m pytest -m slow

test-all: test test-slow

deps: .venv-oldest/.ready .venv-newest/.ready  # the quick tests with the oldest and the newest dependencies we allow
	.venv-oldest/bin/python -m pytest -m "not slow"
	.venv-newest/bin/python -m pytest -m "not slow"

.venv-oldest/.ready: PINS = --constraint constraints-oldest.txt
.venv-newest/.ready: PINS = --upgrade --upgrade-strategy eager
.venv-newest/.ready: always
.PHONY: always
.venv-%/.ready: BIN = $(@D)/bin
.venv-%/.ready: pyproject.toml constraints-oldest.txt
	@echo "Setting up $(@D): about 5 GB to download the first time."
	@$(PYTHON) -m venv $(@D)
	@$(call install,notebooks)
	@$(call install,test)
	@touch $@

lint: .venv/.dev  # style, types and spelling
	$(BIN)/ruff check . && $(BIN)/ruff format --check otclib tests benchmarks
	$(BIN)/mypy
	$(BIN)/codespell otclib tests book README.md CONTRIBUTING.md CHANGELOG.md notebooks/*.py

explorer: setup  # the transport explorer as a page in the browser; trains its runs first where they are missing
	cd notebooks && exec ../$(BIN)/python -m otclib.processes voila explorer.ipynb

book: .venv/.book  # the chapters and the docstrings as a site, in book/_build
	$(BIN)/python -m sphinx -q -W --keep-going -b html book book/_build && echo "open book/_build/index.html"

GRID = $(BIN)/python -m otclib.processes snakemake --snakefile workflow/Snakefile --cores all --configfile

figures: .venv/.batch  # three systems on three seeds
	$(GRID) workflow/seeds.yaml

table: .venv/.batch  # six systems against six attacks, three seeds: more than 5 hours on two cores; it resumes, as all of these
	$(GRID) workflow/table.yaml && $(BIN)/python -m otclib.experiments.demo --only 05_all_systems

ablation: .venv/.batch  # OTCCLIP plus with one part missing or changed at a time, three seeds: 2 hours on two cores
	$(GRID) workflow/ablation.yaml && $(BIN)/python -m otclib.experiments.demo --only 05_all_systems

controls: .venv/.batch  # OTCCLIP plus with each part missing or done otherwise, in two worlds, three seeds: 96 runs
	$(GRID) workflow/controls.yaml

dose: .venv/.batch  # the undefended model on more and more poison, three seeds: 35 minutes on two cores
	$(GRID) workflow/dose.yaml && $(BIN)/python -m otclib.experiments.demo --only 01_poisoning

worlds: .venv/.batch  # three systems in three worlds, at the least dose of each and at twice that, three seeds: 2 hours with bf16
	$(GRID) workflow/worlds.yaml

six: .venv/.batch  # six attacks in one set, three systems in two worlds, three seeds: an hour with bf16
	$(GRID) workflow/six.yaml

batch: .venv/.batch  # chapter 6 for every data set, attack, system and seed of workflow/batch.yaml
	$(GRID) workflow/batch.yaml

pages: setup  # the pages of results in the book and their pictures, anew from the committed records
	$(BIN)/python -m otclib.experiments.pages

bench: .venv/.bench  # speed against other solvers and against brute force, and its page of the book: 20 minutes on two cores
	$(BIN)/python -m benchmarks.transport

throughput: setup  # images a second beside open_clip's own loop, of five systems, and memory: 20 minutes on two cores
	$(BIN)/python -m benchmarks.throughput

clean:
	rm -rf .venv .venv-oldest .venv-newest runs book/_build book/notebooks
