# make test   environment, form of the code, unit tests, doctests, pair check, every notebook that has changed
# make book   environment, every notebook that has changed, HTML in _build/html, checks of that HTML
# Options: PYTHON=python3.12  VENV=.venv  CONSTRAINTS=constraints.txt  TORCH_INDEX=<wheel index for another torch build>
#          MODEL=<timm name>: pages that can show a network of yours show this one, e.g. MODEL=resnet50

PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
TORCH_INDEX ?=
BIN         := $(VENV)/bin
# Idle threads sleep instead of spinning: on shared cores spinning costs many times the work itself.
export OMP_WAIT_POLICY ?= passive
# On the command line only: MODEL is too common a name to be taken from an environment.
ifeq ($(origin MODEL),command line)
export CTRACE_MODEL := $(MODEL)
endif
# A bar for a download would be a widget, whose scripts the page fetches from another host.
export HF_HUB_DISABLE_PROGRESS_BARS ?= 1
STAMP       := $(VENV)/.installed
CELL_SECONDS := 600
# One way to run a notebook. One that passed before is skipped, and named, when neither its cells nor what it
# depends on (tools/depends.py) has changed since; the book shows the same runs. Nothing is collected when none is left.
define RUN_NOTEBOOKS
	set -e; left=$$($(BIN)/python -m tools.fresh_cache); test -z "$$left" || \
	  $(BIN)/python -m pytest --nbmake --nbmake-kernel=python3 --nbmake-timeout=$(CELL_SECONDS) --only-changed --durations=0 notebooks
endef

.PHONY: help test book browser bench scores gpu stand-in sync links colab colab-quick clean

help:
	@echo "make test     environment, form of the code, unit tests, doctests, pair check, every notebook that has changed"
	@echo "make book     the book, in _build/html/index.html; MODEL=resnet50 adds that network to its pages"
	@echo "make browser  every page and every gallery tab in Chromium, after make book"
	@echo "make bench    every benchmark again, beside its peers (an hour and a half on an idle machine)"
	@echo "make scores   every score of the scoreboard that is not there yet, then its table (hours; can be stopped)"
	@echo "make gpu      the tests that need a GPU, every notebook and the book on it; fails where there is none"
	@echo "make stand-in every notebook on a device that only pretends to be one: no tensor may stay behind"
	@echo "make sync     notebooks/*.py -> notebooks/*.ipynb"
	@echo "make links    links to other sites, after make book (needs a network)"
	@echo "make colab    the notebooks alone, in an empty folder and a new environment"
	@echo "make colab-quick  the same with the torch that is here: imports, photographs, one notebook whole"
	@echo "make clean    remove what was built; the environment stays"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ctrace needs Python 3.11 or newer, '$(PYTHON)' is older. Try: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || test -x $(BIN)/python || \
	  { echo "'$(PYTHON)' cannot make environments. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install -q torch torchvision --index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install -q -e '.[book,test]' -c $(CONSTRAINTS)
	@touch $@

test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tools/house.py --check
	@# a process for each core, so one thread for each process
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile
	$(RUN_NOTEBOOKS)

book: $(STAMP)
	$(RUN_NOTEBOOKS)
	@# --all: Sphinx repeats a warning only when it reads the page again, so a partial build could hide one.
	$(BIN)/jupyter-book build . --all -W --keep-going
	$(BIN)/python tools/check_notebooks.py
	$(BIN)/python tools/check_html.py _build/html
	@echo "The book is in _build/html/index.html"

browser: $(STAMP)
	$(BIN)/python tools/browser_check.py --self-test
	$(BIN)/python tools/browser_check.py _build/html

bench: $(STAMP)
	$(BIN)/python -m pip install -q -e '.[bench]' -c $(CONSTRAINTS)
	$(BIN)/python benchmarks/cut.py
	$(BIN)/python benchmarks/sweep.py
	mkdir -p book/measured
	set -e; for name in gradcam parchgrad carrot_graph carrot_head your_data; do $(BIN)/python benchmarks/$$name.py > book/measured/$$name.md; done

# Hours. What is scored already, under _build/scoreboard, is not scored again; further networks are trained by
# `python tools/train_aviary.py --further` and are scored with the others when they are there.
scores: $(STAMP)
	$(BIN)/python -m benchmarks.scoreboard

gpu: $(STAMP)
	@$(BIN)/python -m tools.need_gpu
	$(BIN)/python -m pytest -m gpu
	$(MAKE) book

stand-in: $(STAMP)
	$(BIN)/python tests/pages_on_stand_in.py

sync: $(STAMP)
	$(BIN)/python tools/sync_notebooks.py

links: $(STAMP)
	$(BIN)/python tools/check_links.py _build/html

colab: $(STAMP)
	$(BIN)/python -m tools.colab_check

colab-quick: $(STAMP)
	PIP_CONSTRAINT=$(abspath $(CONSTRAINTS)) $(BIN)/python -m tools.colab_check --borrow --quick

clean:
	rm -rf _build build dist *.egg-info .pytest_cache
	find ctrace tests tools book -name __pycache__ -type d -prune -exec rm -rf {} +
