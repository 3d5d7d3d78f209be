# make demo             install, then the quickstart notebook, headless (make demo DATASET=mnist for MNIST)
# make test             install, build MinkowskiEngine (Linux; MINKOWSKI=no leaves it out), then the whole test suite
# make minkowski        install, then build and install MinkowskiEngine, for the backend of that name
# make notebooks        install, then every notebook, headless, with the smallest settings (minutes)
# make bench            install, then the engine's speed beside the published way and the machine's limits (BENCH: options)
# make lab              install, then JupyterLab on the notebooks
# Variables: PYTHON, DATASET, DATA (folder that holds MNIST/raw), CONSTRAINTS (constraints.txt: pinned versions), DEVICE;
# of make minkowski: CUDA (yes, no; otherwise as found), JOBS (files compiled at once), SDIST (the source archive);
# of make tables: SWEEP (options of `pcdd sweep`)

PYTHON ?= python3
DATASET ?= digits
DATA ?=
DEVICE ?=
CONSTRAINTS ?=
MINKOWSKI ?= $(if $(filter Linux,$(shell uname -s)),yes,no)
VENV := .venv
BIN := $(VENV)/bin

export OMP_WAIT_POLICY ?= PASSIVE
# a variable of the command line as an option; CUDA and JOBS mean other things in many environments
given = $(if $(filter command,$(firstword $(origin $(1)))),$(2) "$($(1))")

.PHONY: demo test minkowski notebooks bench lab install pair tables clean

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
	@echo "The executed notebook is runs/quickstart-$(DATASET).ipynb"

test: install $(if $(filter yes,$(MINKOWSKI)),minkowski)
	OMP_NUM_THREADS=1 PCDD_TEST_MINKOWSKI=$(MINKOWSKI) $(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder

minkowski: install
	$(BIN)/python minkowski/build.py $(call given,CUDA,--cuda) $(call given,JOBS,--jobs) $(call given,SDIST,--sdist)

# One after another: kernels that start at once can race for ports. Parameters that a notebook does not have do no harm.
notebooks: install
	@mkdir -p runs/notebooks
	@set -e; for notebook in notebooks/*.ipynb; do name=$$(basename $$notebook .ipynb); echo "$$notebook"; \
		OMP_NUM_THREADS=1 $(BIN)/papermill $$notebook runs/notebooks/$$name.ipynb -k python3 --no-progress-bar --log-level ERROR \
		-f notebooks/smoke.yaml -p output runs/notebooks/$$name -p runs_folder runs/notebooks/runs -p device cpu; done

lab: install
	$(BIN)/jupyter lab notebooks

# Needs MNIST, a quiet machine, and for some rows MinkowskiEngine (make minkowski)
bench: install
	$(BIN)/python benchmarks/bench.py $(BENCH)
	$(BIN)/python benchmarks/sparse_layers.py

# After editing a notebook's .py or .ipynb: bring the pair in step
pair: install
	$(BIN)/jupytext --sync notebooks/*.py

# The paper's tables at the paper's scale, then the ingredients, on Ray, into figures/records and figures/tables. A run of the
# paper takes about 20 minutes of one core. --minutes, or Ctrl-C, stops; make tables again goes on. SWEEP: options of
# `pcdd sweep`. Needs MNIST.
tables: install minkowski
	set -e; for table in "table1 --seeds 5" "initialisation --seeds 10" "table2 --seeds 5" "ablation --seeds 5" \
		"why --seeds 3" "pool --seeds 3" "ingredients --seeds 1"; do \
		$(BIN)/pcdd sweep $$table $(SWEEP); \
		$(BIN)/pcdd report $$table --keep figures/records --output figures/tables; done

clean:
	rm -rf build *.egg-info
