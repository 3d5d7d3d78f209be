# Every target except clean installs pcdd into .venv first.
# make demo             run the quickstart notebook without a browser (DATASET=mnist, DATASET=adrenal)
# make check            lint, format, types, layers and unit tests: before every commit
# make test             build MinkowskiEngine (Linux; MINKOWSKI=no: skip), run the whole test suite
# make fuzz             damage files anew and read them (FUZZ="--examples 3000": more of each kind)
# make minkowski        build and install MinkowskiEngine, for the backend of that name
# make notebooks        run every notebook without a browser, with the smallest settings (minutes)
# make bench            measure the engine against published-style code and the machine's limits
# make gpu              run everything that needs a GPU, in parts of at most 9 minutes each
# make gpu-prepare      collect what make gpu needs on a machine without a network
# make lab              open copies of the notebooks (in runs/lab) in JupyterLab
# make notebooks-outputs  refresh the small outputs that the notebooks keep, where they are stale
# make site             build the site in build/site (SITE="--keep": keep executed notebooks)
# make pair             synchronise the .py and .ipynb files of the notebooks
# make tables           make the runs and tables of the paper (see below)
# Variables:
#   PYTHON        Python interpreter for .venv
#   DATASET       digits, mnist or adrenal
#   DATA          folder that contains MNIST/raw or MedMNIST
#   DEVICE        cpu, cuda or cuda:N
#   CONSTRAINTS   constraints.txt: pinned versions
#   BENCH         options of benchmarks/bench.py
#   GPU           options of benchmarks/gpu_day.py
#   PREPARE       options of benchmarks/gpu_prepare.py
#   FUZZ          options of tests/fuzz.py
#   SWEEP         options of `pcdd sweep` for make tables
#   CUDA          make minkowski: yes or no (default: yes if there is a GPU)
#   SITE          options of docs/build.py
#   JOBS          make minkowski: files to compile at once
#   SDIST         make minkowski: path of the source archive

PYTHON ?= python3
DATASET ?= digits
DATA ?=
DEVICE ?=
CONSTRAINTS ?=
MINKOWSKI ?= $(if $(filter Linux,$(shell uname -s)),yes,no)
VENV := .venv
BIN := $(VENV)/bin

export OMP_WAIT_POLICY ?= PASSIVE
# Pass a variable as an option only if it is set on the command line, because many environments use
# CUDA and JOBS for something else.
given = $(if $(filter command,$(firstword $(origin $(1)))),$(2) "$($(1))")

.PHONY: demo check types units test fuzz minkowski notebooks notebooks-outputs site bench gpu gpu-prepare \
	lab install pair tables clean

install: $(VENV)/installed

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "pcdd needs Python 3.10 or later; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments; install its venv package (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): about 2 minutes and 6 GB, most of it PyTorch ..."
	$(BIN)/python -m pip install --progress-bar off -q -r requirements.txt $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	@touch $@

demo: install
	@mkdir -p runs
	$(BIN)/papermill notebooks/01_quickstart.ipynb runs/quickstart-$(DATASET).ipynb --log-output --no-progress-bar -k python3 \
		-p dataset $(DATASET) -p output runs/quickstart-$(DATASET) -p data_folder "$(abspath $(DATA))" -p device "$(DEVICE)"
	@echo "The executed notebook is runs/quickstart-$(DATASET).ipynb; open runs/quickstart-$(DATASET)/migration.html to play the motion"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	@$(MAKE) --no-print-directory --jobs 2 types units

# Two parts of `make check`. They run side by side, because pyright uses one core.
types: install
	$(BIN)/pyright

units: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses 2 --no-loadscope-reorder \
		-m "not slow and not minkowski and not browser and not ray and not gpu" tests/unit

test: install $(if $(filter yes,$(MINKOWSKI)),minkowski)
	OMP_NUM_THREADS=1 PCDD_TEST_MINKOWSKI=$(MINKOWSKI) $(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder

# Prints its seed; FUZZ="--seed N" repeats it.
fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py $(FUZZ)

minkowski: install
	$(BIN)/python minkowski/build.py $(call given,CUDA,--cuda) $(call given,JOBS,--jobs) $(call given,SDIST,--sdist)

# Notebooks run one after another, because kernels that start at once can race for ports.
notebooks: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/executed.py runs/notebooks

# The default parameters need MNIST for some pictures (PCDD_DATA).
notebooks-outputs: install
	OMP_NUM_THREADS=1 $(BIN)/python tools/notebook_outputs.py

# Needs no data, and after the installation no network.
site: install
	$(BIN)/python -m pip install --progress-bar off -q -e ".[site]" $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	OMP_NUM_THREADS=1 $(BIN)/python docs/build.py $(SITE)

# JupyterLab opens copies, so that running and saving them changes no file of the repository. A copy
# that is older than its notebook is kept under another name.
lab: install
	@mkdir -p runs/lab
	@for notebook in notebooks/*.ipynb; do copy=runs/lab/$$(basename $$notebook); \
		if [ -e $$copy ] && [ $$notebook -nt $$copy ]; then mv $$copy $${copy%.ipynb}-earlier.ipynb; fi; \
		if [ ! -e $$copy ]; then cp $$notebook $$copy; fi; done
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) runs/lab

# Needs MNIST and a machine without other load. Some rows need MinkowskiEngine (make minkowski).
bench: install
	$(BIN)/python benchmarks/bench.py $(BENCH)
	$(BIN)/python benchmarks/sparse_layers.py

# Run this after a change of the .py or the .ipynb of a notebook.
pair: install
	$(BIN)/jupytext --sync notebooks/*.py

# Needs MNIST. A second call continues; GPU="--dry-run" tries it without a GPU.
gpu: install
	$(BIN)/python benchmarks/gpu_day.py $(GPU)

gpu-prepare: install
	$(BIN)/python benchmarks/gpu_prepare.py $(PREPARE)

# Make the paper's tables at the paper's scale, then the ingredients, on Ray. Results go to
# figures/records and figures/tables. A run of the paper takes about 20 minutes of one core.
# SWEEP="--minutes M" limits each sweep, Ctrl-C stops the target; a second call continues. Needs
# MNIST.
tables: install minkowski
	set -e; for table in "table1 --seeds 5" "initialisation --seeds 10" "table2 --seeds 5" "ablation --seeds 5" \
		"why --seeds 3" "pool --seeds 3" "ingredients --seeds 1"; do \
		$(BIN)/pcdd sweep $$table $(SWEEP); \
		$(BIN)/pcdd report $$table --keep figures --output figures/tables; done

clean:
	rm -rf build *.egg-info
