# make demo   environment, bundled demonstrations, training, evaluation at 1 and 2 steps, report
# make test   what CI runs: format, lint, types, tests
# make test-python PY=3.13   the wheel in a fresh environment of another Python
# make test-latest, test-oldest   the same with the newest and the oldest versions of what it needs
# make test-lerobot   the plugin and both ways of datasets against the real LeRobot, in an environment of its own (6 GB)
# make test-robomimic   the same against the real robomimic (6 GB, needs cmake and a C++ compiler)
# make docs   the site, in build/site/html
# make tutorials   the notebooks of docs/tutorials, from the scripts in examples/tutorials: about five minutes
# make test-gpu, bench-gpu   the same on a CUDA GPU, with the Python in .venv or else $(PYTHON); one line where there is no GPU
# make test-quick   for daily work: the tests that are not marked slow
PYTHON ?= python3
SHELL  := bash
VENV   ?= .venv
BIN    := $(VENV)/bin
TREE   := build/tree
# Without a GPU, spare yourself the CUDA packages: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
INDEX  := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: demo test test-faults test-gpu bench-gpu test-quick test-python test-latest test-oldest test-lerobot test-robomimic fresh lint types unit tree docs tutorials clean
$(VENV)/.demo: pyproject.toml constraints.txt
	@echo "Building the environment in $(VENV): about a minute, longer where packages have to be downloaded."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --quiet --upgrade pip
	$(BIN)/pip install --quiet --quiet $(INDEX) --constraint constraints.txt --editable '.[pusht,report,tensorboard]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install --quiet --quiet $(INDEX) --constraint constraints.txt --editable '.[dev]'
	# Other projects' own code, to test against. Without their requirements: robomimic's bring torchvision and a GL probe
	# that has to be compiled, openpi-client's an old NumPy, robosuite's a keyboard driver built from source; what the tests
	# call needs none of them.
	$(BIN)/pip install --quiet --quiet --no-deps --constraint constraints.txt robomimic six openpi-client dm-tree wrapt robosuite
	touch $@

demo: $(VENV)/.demo
	$(BIN)/isdt train experiment=pusht_demo if_exists=resume
	$(BIN)/isdt eval checkpoint=outputs/pusht_demo 'arms=[1,2,euler10]' episodes=100 out=outputs/pusht_demo/eval
	@echo "Open outputs/pusht_demo/eval/report.html"

lint: $(VENV)/.dev tree
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd $(TREE) && $(abspath $(BIN))/lint-imports

types: $(VENV)/.dev tree
	cd $(TREE) && MYPYPATH=. $(abspath $(BIN))/mypy

# The folders install inside one namespace; a copy shows the checkers the layout that users import.
tree:
	rm -rf $(TREE)/isdt_policy && mkdir -p $(TREE)
	cp -pr isdt_policy $(TREE)/
	cp -pr envs datasets eval configs $(TREE)/isdt_policy/
	cp -p pyproject.toml $(TREE)/  # read by both where they start

# One process per core, four at most (each needs 2 GB), with one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4

unit: $(VENV)/.dev
	$(PYTEST) --durations 20

test: lint types unit

# Hours; it goes on where it was stopped. The fast core is part of `make test`.
test-faults: $(VENV)/.dev
	nice $(BIN)/python tests/faults/run.py

test-quick: $(VENV)/.dev
	$(PYTEST) -m "not slow"

# The wheel in a fresh environment, and tests of what people do first, against what is installed there: with another Python, with
# the newest release of everything that pyproject.toml allows, and with the oldest. PyTorch is that of constraints.txt each time.
PY     ?= 3.12
FOUND  = $(firstword $(wildcard $(HOME)/.pyenv/versions/$(PY).*/bin/python) $(shell command -v python$(PY)))
EXTRAS := pusht,report,tensorboard,formats,diffusers,runtime,serve,export,hub,tune
FIRST  := test_old_files.py test_public.py shared cli/test_zoo.py cli/test_cli.py method/test_policy.py datasets/test_store.py \
	eval/test_result.py deploy/test_runtime.py
test-python:
	@test -n "$(FOUND)" || { echo "There is no Python $(PY) here."; exit 2; }
	$(MAKE) fresh PYTHON=$(FOUND) FRESH=$(CURDIR)/build/python$(PY) VERSIONS=constraints.txt
test-latest:
	mkdir -p build && grep '^torch==' constraints.txt > build/latest.txt
	$(MAKE) fresh FRESH=$(CURDIR)/build/latest VERSIONS=build/latest.txt
test-oldest:
	mkdir -p build && $(PYTHON) tests/oldest.py $(EXTRAS) > build/oldest.txt
	$(MAKE) fresh FRESH=$(CURDIR)/build/oldest VERSIONS=build/oldest.txt
fresh:
	$(PYTHON) -m venv --clear $(FRESH)
	$(FRESH)/bin/pip install --quiet --quiet --upgrade pip
	$(FRESH)/bin/pip wheel --quiet --quiet --no-deps --wheel-dir $(FRESH)/dist .
	$(FRESH)/bin/pip install --quiet --quiet $(INDEX) --constraint $(VERSIONS) \
		"$$(ls $(FRESH)/dist/isdt_policy-*.whl)[$(EXTRAS)]" pytest pytest-timeout hypothesis scipy psutil beartype
	cd $(FRESH) && OMP_NUM_THREADS=1 bin/pytest -q --config-file $(CURDIR)/pyproject.toml $(addprefix $(CURDIR)/tests/,$(FIRST))

# LeRobot needs Python 3.12 and a torch of its own. What came of it is kept in results/interop/lerobot.txt.
LEROBOT := $(CURDIR)/build/lerobot
PLUGIN  := $(CURDIR)/plugins/lerobot_policy_isdt
PY312    = $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python) $(shell command -v python3.12))
$(LEROBOT)/.done: $(PLUGIN)/pyproject.toml pyproject.toml
	@test -n "$(PY312)" || { echo "There is no Python 3.12 here."; exit 2; }
	$(PY312) -m venv $(LEROBOT)
	$(LEROBOT)/bin/pip install --quiet $(INDEX) "lerobot[dataset,training,evaluation,pusht,core-scripts]==0.6.1" pytest "mujoco<3.9"
	$(LEROBOT)/bin/pip install --quiet $(INDEX) --editable . --editable $(PLUGIN)
	touch $@

test-lerobot: $(LEROBOT)/.done
	cd $(LEROBOT) && set -o pipefail && HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 bin/python -m pytest -v --import-mode=importlib \
		-c /dev/null --rootdir $(PLUGIN) $(PLUGIN)/tests | grep -E "^LeRobot|PASSED|FAILED|ERROR|passed|failed" \
		| sed 's/^.*test_lerobot.py:://' | tee $(CURDIR)/results/interop/lerobot.txt

# robomimic as a user has it: the newest torch and torchvision that pip finds, egl_probe compiled. What came of it is kept as well.
ROBOMIMIC := $(CURDIR)/build/robomimic
$(ROBOMIMIC)/.done: pyproject.toml
	$(PYTHON) -m venv $(ROBOMIMIC)
	CMAKE_POLICY_VERSION_MINIMUM=3.5 $(ROBOMIMIC)/bin/pip install --quiet $(INDEX) --editable '.[robomimic,report]' \
		pytest pytest-timeout beartype
	touch $@

test-robomimic: $(ROBOMIMIC)/.done
	set -o pipefail && OMP_NUM_THREADS=1 $(ROBOMIMIC)/bin/python -m pytest -v tests/deploy/test_robomimic_scripts.py \
		tests/datasets/test_robomimic_parity.py tests/datasets/test_fetch.py | grep -E "^Python|PASSED|FAILED|ERROR|passed|failed" \
		| sed 's/^tests\/[a-z]*\///' | tee results/interop/robomimic.txt

# Pages, search and links, in build/site/html.
docs: $(VENV)/.dev
	$(BIN)/python docs/make_site.py

tutorials: $(VENV)/.dev
	$(BIN)/python docs/make_tutorials.py

# On a bare machine whose Python has torch and what this package needs: make test-gpu PYTHON=python3
GPU_PY  := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU     := $(GPU_PY) -c "import sys, torch; sys.exit(not torch.cuda.is_available())"
test-gpu:
	@if $(GPU); then $(GPU_PY) -m pytest -m gpu tests/gpu; else echo "PyTorch finds no CUDA GPU: no test was run."; fi

# Every line is a table of its own in results/gpu/; a size that does not fit into the memory ends in one line. After nine minutes nothing
# more is begun; the same command goes on with what is missing. What says most comes first.
GPU_STEPS := $(foreach size,4m 63m 16m,$(foreach batch,64 1024 256,$(foreach way,false.false true.false true.true,$(size).$(batch).$(way))))
bench-gpu:
	@if $(GPU); then mkdir -p results/gpu; end=$$(($$(date +%s) + 540)); \
	for size in 63m 4m 16m; do out=results/gpu/infer_$$size.json; [ -e $$out ] || [ $$(date +%s) -ge $$end ] || \
	  $(GPU_PY) -m isdt_policy bench infer size=$$size device=cuda rounds=3 out=$$out; done; \
	for what in $(GPU_STEPS); do set -- $$(echo $$what | tr . ' '); \
	  out=results/gpu/train_$$1_$$2_compile_$$3_graphs_$$4.json; [ -e $$out ] || [ $$(date +%s) -ge $$end ] || \
	  $(GPU_PY) -m isdt_policy bench train size=$$1 batch=$$2 compile=$$3 graphs=$$4 device=cuda rounds=3 out=$$out; \
	done; true; else echo "PyTorch finds no CUDA GPU: nothing was measured."; fi

clean:
	rm -rf $(VENV) build *.egg-info
