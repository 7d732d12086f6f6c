# `make demo` shows the method working; `make test` runs every test this machine can run. Both install first.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/installed
ENGINE  ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)

# Some shells forbid Python to keep compiled modules; every one of the run's dozen processes would then compile its
# imports anew, which costs minutes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-unit test-long test-gpu bad-inputs check-cluster check-slurm check-trackio chaos soak sim sim-scale sim-scale-ray bench bench-check bench-gpu docs docs-serve lint clean

help:
	@echo "make install   create $(VENV) with the $(ENGINE) engine (does nothing when up to date)"
	@echo "make demo      train a tiny hallucinating model, improve it by three rounds of CSR, write a report"
	@echo "make test      every test this machine can run      (make test-unit: the fast ones)"
	@echo "make test-long the tests that take minutes, and those that also have a long form, in that form (an hour)"
	@echo "make test-gpu  what nobody has seen yet: the first machine with a GPU, from a kernel to 7B shapes (an hour)"
	@echo "make chaos     kill and stop the parts of real runs at random (N=50 of them), and see that nothing is lost"
	@echo "make bad-inputs  read some 200 bad pictures and prompt files, and write what became of each"
	@echo "make check-slurm  submit cluster/slurm.sh to a real Slurm of two nodes on this machine (root; 15 minutes)"
	@echo "make check-cluster  have SkyPilot's own parsers read cluster/skypilot.yaml; the rest of cluster/ is in make test"
	@echo "make check-trackio  what trackio has of a run, in its own database; it is not in make install (an older Pillow)"
	@echo "make soak      small rounds for MINUTES (60), and whether memory, files or anything else grows meanwhile"
	@echo "make sim       seeded histories of deaths, crashes and full disks, held to what is promised (N=100000, RUNS=2000, SEED=17)"
	@echo "make sim-scale the driver at 1 to 256 simulated generators and a thousand to a million prompts (an hour)"
	@echo "make sim-scale-ray whether that is true: 64 sleeping actors of real Ray on four nodes (five minutes)"
	@echo "make bench     every benchmark this machine can run"
	@echo "make bench-check the short form of each against its baseline: what has got worse (a quarter of an hour; ONLY=train,rollout)"
	@echo "make bench-gpu what a GPU makes of the training step, FlexAttention, CLIP and merges (ten minutes, JSON=gpu.json)"
	@echo "make docs      the documentation site, built strictly into site/     (make docs-serve: shown while you write)"
	@echo "make lint      ruff and mypy"

install: $(STAMP)

# setup.cfg holds the versions. The three torch lines override the engine's own pin, see [options.extras_require].
$(STAMP): setup.cfg setup.py Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not ((3, 10) <= v[:2] < (3, 14)))' || \
	  { echo "csr_ray needs Python 3.10 to 3.13; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11 install"; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || \
	  { echo "csr_ray needs a C++ compiler (the engine and DeepSpeed build small kernels). Install g++ and run make again."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "'$(PYTHON)' has no venv module. Install it (Debian: apt-get install python3-venv) and run make again."; exit 1; }
	@echo "Installing into $(VENV) with the $(ENGINE) engine (about a minute; 7 GB on disk)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv
	@grep -E '^ +torch[a-z]*==' setup.cfg | tr -d ' ' > $(VENV)/overrides.txt
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --override $(VENV)/overrides.txt -e '.[$(ENGINE),dev]'
	@touch $(STAMP)

# The GPU's engine serves on GPUs only, and the demo needs no more than one for everybody.
ON_ONE_GPU := generators.gpus=0.4 generators.gpu_memory_utilization=0.35 scorers.gpus=0.2 train.gpus_per_worker=0.4

demo: install
	@$(BIN)/csr-ray run configs/tiny-world.yaml $(if $(filter gpu,$(ENGINE)),$(ON_ONE_GPU))

# As many of the fast tests at a time as there are cores; those that start a Ray of their own need all cores.
test: install
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 tests/unit tests/sim tests/gpu_like
	@$(BIN)/python -m pytest tests/ray tests/gpu

test-unit: install
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 tests/unit

test-long: install
	@CSR_RAY_LONG_TESTS=1 $(BIN)/python -m pytest tests/ray/test_released_trees.py
	@CSR_RAY_LONG_TESTS=1 $(BIN)/python -m pytest tests/ray -m long

# Without a GPU the tests would be skipped one by one; here that is an error.
test-gpu: install
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no GPU here: torch.cuda.is_available() is false")'
	@$(BIN)/python -m pytest tests/gpu -x -s -rs --durations=0

bad-inputs: install
	@PYTHONWARNINGS=ignore $(BIN)/python tests/bad_inputs.py docs/bad_inputs.md

# N deaths of real processes at random instants; takes about half a minute each, and writes docs/chaos.md.
chaos: install
	@$(BIN)/python tests/ray/chaos/chaos.py --deaths $(or $(N),50) --markdown docs/chaos.md

# The real thing: Slurm's daemons, two nodes, jobs that are stopped in the middle and go on.
check-slurm: install
	@$(BIN)/python tests/cluster/check_slurm.py $(CHECKS)

# SkyPilot wants other versions of what we use, too.
check-cluster: install
	@$(BIN)/python -m uv run --quiet --no-project --isolated --python $(BIN)/python \
	  --with "$$(grep -o 'skypilot==.*' setup.cfg)" python tests/cluster/check_skypilot.py

# trackio wants an older Pillow, so it is installed beside the rest and only this test sees it.
check-trackio: install
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --target $(VENV)/trackio "$$(grep -o 'trackio>=.*' setup.cfg)"
	@PYTHONPATH=$(VENV)/trackio $(BIN)/python -m pytest tests/unit/test_tracking.py -k trackio -rs

MINUTES ?= 60
soak: install
	@$(BIN)/python tests/ray/chaos/soak.py --minutes $(MINUTES)

sim: install
	@$(BIN)/python tests/sim/run.py --num $(or $(N),2000) $(if $(RUNS),--runs $(RUNS)) $(if $(SEED),--seed $(SEED))

sim-scale: install
	@$(BIN)/python benchmarks/sim_scale.py

sim-scale-ray: install
	@$(BIN)/python benchmarks/scale_on_ray.py

# Not bench_variants.py and bench_methods.py: whole runs of every world or method with three seeds each take hours, and
# the untouched worlds are kept so.
bench: install
	@for script in $(filter-out benchmarks/bench_variants.py benchmarks/bench_methods.py,$(wildcard benchmarks/bench_*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# Ratios alone, which hold on other machines too; half an hour. ONLY=train,rollout: two of them.
bench-check: install
	@$(BIN)/python benchmarks/check.py $(if $(ONLY),--only $(ONLY))

# The kit needs neither Ray nor vLLM, and goes on where it was cut off: docs/gpus.md.
JSON ?= gpu.json
bench-gpu: install
	@$(BIN)/python benchmarks/gpu/kit.py --json $(JSON) $(if $(PARTS),--parts $(PARTS))

# Needs no network, and site/index.html can be opened from the disk. The variable silences a notice of the theme's makers.
docs: install
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "site/index.html"

# Documents and docstrings are shown as they change; what else is made from the code when it is started again.
docs-serve: install
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --watch csr_ray --watch configs

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@MYPYPATH=docs $(BIN)/mypy --follow-imports silent -p sitegen
	@cd benchmarks && MYPYPATH=.. $(abspath $(BIN))/mypy --config-file ../setup.cfg --follow-imports silent *.py

clean:
	rm -rf build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
