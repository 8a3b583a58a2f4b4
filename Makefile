# make demo   environment, bundled demonstrations, training, evaluation at 1 and 2 steps, report
# make test   what CI runs: format, lint, types, tests
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Without a GPU, spare yourself the CUDA packages: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
INDEX  := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: demo test lint types unit clean
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
	$(BIN)/pip install --quiet --quiet --no-deps --constraint constraints.txt robomimic openpi-client robosuite
	touch $@

demo: $(VENV)/.demo
	$(BIN)/isdt train experiment=pusht_demo if_exists=resume
	$(BIN)/isdt eval checkpoint=outputs/pusht_demo steps=[1,2] baselines=[euler10] episodes=100 out=outputs/pusht_demo/eval
	@echo "Open outputs/pusht_demo/eval/report.html"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The folders install inside one namespace; a tree of links shows the checker the layout that users import.
types: $(VENV)/.dev
	rm -rf build/types && mkdir -p build/types/isdt_policy
	ln -s $(CURDIR)/isdt_policy/* $(CURDIR)/envs $(CURDIR)/datasets $(CURDIR)/eval $(CURDIR)/configs build/types/isdt_policy/
	cd build/types && MYPYPATH=. $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml

unit: $(VENV)/.dev
	$(BIN)/pytest

test: lint types unit

clean:
	rm -rf $(VENV) build *.egg-info
