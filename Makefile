# Everything runs in the virtual environment $(VENV), which is made when it is first needed.
#   make test PYTHON=/path/to/python   an environment of yours that holds torch and detectron2, as it is
#   make demo ARGS="..."               arguments for the command behind the target
#   make demo-seeds SEEDS="0 1 2"      which seeds
#   make benchmark SIZES=FILE          a COCO file, with whose image sizes padding is measured
#   make setup DETECTRON2=git          Detectron2's upstream repository instead of its build on PyPI;
#                                      give it to every make, or export it
#   make setup BASE_PYTHON=python3.12  the Python that the virtual environment is made with

VENV ?= .venv
DETECTRON2 ?= pypi
ARGS ?=
SEEDS ?= 0 1 2
# Processes of one thread each that share the tests out.
JOBS ?= $(shell nproc)
KILLS ?= 50
SOAK_STEPS ?= 3000
# Ways to carry a step out that make benchmark compares, each KEY=VALUE,KEY=VALUE...
FASTER ?= MODEL.CHANNELS_LAST=True MODEL.FOLD_FROZEN_NORMS=True SOFT_TEACHER.AMP_TEACHER=True \
	MODEL.CHANNELS_LAST=True,MODEL.FOLD_FROZEN_NORMS=True,SOFT_TEACHER.AMP_TEACHER=True \
	--amp --amp,MODEL.CHANNELS_LAST=True,MODEL.FOLD_FROZEN_NORMS=True
# A COCO file whose images' sizes make benchmark measures padding with.
SIZES ?=

UPSTREAM := git+https://github.com/facebookresearch/detectron2.git
comma := ,
OLDEST_PYTHON := 3.10
VERSION_CHECK := 'import sys; sys.exit(sys.version_info[:2] < ($(subst .,$(comma),$(OLDEST_PYTHON))))'
# The first that works and is new enough; 3.11 is the version that the tests run on.
BASE_PYTHON ?= $(shell for python in python3.11 python3 python; do \
	"$$python" -c $(VERSION_CHECK) \
	2>/dev/null && echo "$$python" && break; done)

ifdef PYTHON
RUN := PYTHONPATH="$(CURDIR)/projects$${PYTHONPATH:+:$$PYTHONPATH}" "$(PYTHON)"
READY := check-python
INSTALL_SECONDS :=
else
RUN := "$(VENV)/bin/python"
READY := $(VENV)/.ready-$(DETECTRON2)
# The stamp holds the seconds that installing took, for the demo to report.
INSTALL_SECONDS = SOFT_TEACHER_INSTALL_SECONDS="$$(cat $(READY))"
endif
PIP := "$(VENV)/bin/python" -m pip --disable-pip-version-check --quiet
# Detectron2's build on PyPI is tagged for Python 3.10, so pip is told to look for that version and
# where to put it.
PIP_FOR_310 := --only-binary=:all: --python-version 3.10 --implementation cp --abi none --platform any

PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest $$($(RUN) -c 'import xdist' 2>/dev/null && \
	printf -- '-n $(JOBS) --dist loadfile')

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-seeds test test-slow test-kill test-soak test-slurm benchmark lint clean check-python

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20
	@echo && sed -n '2,/^$$/s/^# //p' Makefile

setup: $(READY) ## install everything into .venv (about 6 GB, most of it torch)

demo: $(READY) ## train on handwritten digits and compare with supervised training
	@$(INSTALL_SECONDS) $(RUN) tools/demo.py $(ARGS)

demo-seeds: $(READY) ## the demo with several seeds, also against supervised training of equal time
	@$(INSTALL_SECONDS) $(RUN) tools/demo.py --seeds $(SEEDS) --equal-time $(ARGS)

test: $(READY) ## run the tests but the long ones, JOBS files at a time (default: one for each core)
	@$(PYTEST) $(ARGS)

test-slow: $(READY) ## run the long ones: whole trainings, several processes, the tutorial, full size
	@$(PYTEST) -m slow $(ARGS)

test-kill: $(READY) ## kill trainings at KILLS moments (50) and see that nothing is lost
	@$(RUN) -m pytest tests/test_interruptions.py -k killed --kills $(KILLS) $(ARGS)

test-soak: $(READY) ## train SOAK_STEPS tiny steps (3000), twice, and see that nothing grows
	@$(RUN) -m pytest tests/test_soak.py -m "slow or not slow" -s --soak-steps $(SOAK_STEPS) $(ARGS)

test-slurm: $(READY) ## train on a SLURM of two nodes on this machine (Debian or Ubuntu, root)
	@$(RUN) tests/slurm/mini_slurm.py run env $(RUN) -m pytest tests/slurm $(ARGS)

benchmark: $(READY) ## measure every figure of docs/performance.md, into output/benchmark
	@$(RUN) tools/count_step.py --json output/benchmark/step.json
	@$(RUN) tools/benchmark.py --memory --steps 6 --warmup 1 --json output/benchmark/plain.json $(ARGS)
	@set -e; for options in $(FASTER); do \
		$(RUN) tools/benchmark.py --stock-as-is --steps 3 --warmup 1 \
			--json "output/benchmark/$$(echo $$options | tr -d -).json" $(ARGS) $$(echo "$$options" | tr ,= "  "); done
	@$(RUN) tools/benchmark.py --memory --stock-as-is --steps 3 --warmup 1 \
		--json output/benchmark/checkpointed.json \
		$(ARGS) MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS True
	@if command -v g++ >/dev/null; then $(RUN) tools/benchmark.py --stock-as-is --steps 3 --warmup 1 \
		--json output/benchmark/compiled.json $(ARGS) MODEL.COMPILE inductor; \
	else echo "There is no C++ compiler g++, so MODEL.COMPILE inductor was not measured." >&2; fi
	@$(RUN) tools/benchmark_data.py throughput --json output/benchmark/throughput.json
	@test -z "$(SIZES)" || $(RUN) tools/benchmark_data.py padding --annotations "$(SIZES)" \
		--json output/benchmark/padding.json

lint: $(READY) ## check style and format
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

clean: ## remove .venv and caches; output/ and datasets/ stay
	rm -rf "$(VENV)" .pytest_cache .ruff_cache build projects/*.egg-info
	find configs docs projects tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

check-python:
	@"$(PYTHON)" -c $(VERSION_CHECK) || \
		{ echo "PYTHON=$(PYTHON) does not run or is older than Python $(OLDEST_PYTHON)." >&2; exit 1; }
	@"$(PYTHON)" -c 'import torch, detectron2' || \
		{ echo "PYTHON=$(PYTHON) lacks torch or detectron2: install them there, or leave PYTHON away to get a virtual environment with both." >&2; exit 1; }

# The stamp is written last: whatever fails or is interrupted is done again the next time.
$(VENV)/.ready-$(DETECTRON2): setup.cfg pyproject.toml $(wildcard requirements/*.txt)
	@case "$(DETECTRON2)" in pypi|git) ;; *) \
		echo "DETECTRON2 is '$(DETECTRON2)'; choose pypi or git." >&2; exit 1;; esac
	@test -n "$(BASE_PYTHON)" && "$(BASE_PYTHON)" -c $(VERSION_CHECK) || \
		{ echo "No Python $(OLDEST_PYTHON) or later was found: install one, or name it with make BASE_PYTHON=/path/to/python." >&2; exit 1; }
	@rm -f "$(VENV)"/.ready-*
	@$(PIP) --version >/dev/null 2>&1 || "$(BASE_PYTHON)" -m venv --clear "$(VENV)" || \
		{ echo "$(BASE_PYTHON) could not make a virtual environment: on Debian and Ubuntu install the package python3-venv." >&2; exit 1; }
	@date +%s > "$@.started"
	@echo "Installing into $(VENV): torch and the rest are about 6 GB, which takes some minutes."
	@$(PIP) install $(if $(filter pypi,$(DETECTRON2)),-r requirements/detectron2-needs.txt,"setuptools<81" wheel) -e ".[demo,timm,dev]" || \
		{ echo "Installing the packages failed, see pip's message above; when it is mended, run make again." >&2; exit 1; }
	@$(PIP) --quiet uninstall --yes sal-detectron2 detectron2
ifeq ($(DETECTRON2),git)
	@$(PIP) install --no-build-isolation $(UPSTREAM) || \
		{ echo "Building Detectron2 from $(UPSTREAM) failed, see above: it needs git, a C++ compiler and access to that repository." >&2; exit 1; }
else
	@$(PIP) install --no-deps --require-hashes --upgrade $(PIP_FOR_310) \
		--target "$$("$(VENV)/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')" \
		-r requirements/detectron2.txt || \
		{ echo "Installing Detectron2 failed, see pip's message above; make setup DETECTRON2=git builds it from upstream." >&2; exit 1; }
endif
	@"$(VENV)/bin/python" -W ignore -c 'import detectron2.modeling, soft_teacher' || \
		{ echo "The packages are installed but cannot be imported, see above: try make clean setup." >&2; exit 1; }
	@echo $$(( $$(date +%s) - $$(cat "$@.started") )) > "$@" && rm -f "$@.started"
