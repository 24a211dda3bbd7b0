# make demo    from recordings to an adapter, with the shipped demo
# make demo-v3 the same with a miniature of Higgs TTS 3
# make check-v3 BASE=… CODEC=…   check a checkpoint of Higgs TTS 3: docs/v3.md
# make test    all tests, in random order; SEED=… repeats the order that a run printed
# make quick   the tests that are not slow
# make repeats TIMES=50   the slow tests repeatedly on a busy machine; TESTS="…" runs others
# make mutants mutation testing: some 1,200 small mistakes, each made alone in a copy of the code
#              SAMPLE=10 SEED=… tries one in ten, ONLY=… those with a name, PAGE=docs/proof.md writes the table there
# make faults  the fault suite: the outcome of each injected fault
# make bench   each benchmark in a small form: ratios and their goals
# make soak    2,000 steps, 200,000 rows: growth of memory, open files and threads
# make fuzz SECONDS=60   mutated files through every reader, guided by coverage; PAGE=… as above
# make coverage   the lines that no test reaches, and why
#              PAGE=… writes the table
#              The tables of the last five are in docs/proof.md
# make audit   known vulnerabilities of the packages in requirements*.txt, from PyPI
# make sbom    the packages in requirements.txt, with hashes, as CycloneDX: writes sbom.cdx.json
# make check   formatting, types and lints
# make generated   regenerate the schema and docs/config.md, after changing a setting
# make docs    build the documentation as a site; open site/index.html
# make clean   remove the results of the workflow; the environment in .venv stays
#
# Needs Python 3.11 or newer with venv, git and make. PYTHON=python3.12 picks another one.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DELETE_ON_ERROR:
SHELL := bash
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
# With this set, as some containers have it, every process would compile torch again.
unexport PYTHONDONTWRITEBYTECODE
# What an interpreter outside .venv would add to it.
unexport PYTHONPATH PYTHONHOME

.PHONY: help
help:
	@sed -n 's/^# \{0,1\}//;1,/^$$/p' Makefile

.PHONY: demo
demo: $(READY)
	$(IN_VENV) snakemake --cores all

.PHONY: demo-v3
demo-v3: $(READY)
	$(IN_VENV) snakemake --cores all --configfile examples/demo/v3.yaml

.PHONY: check-v3
check-v3: $(READY)
	@test -n "$(BASE)" || { echo "name the checkpoint: make check-v3 BASE=FOLDER" >&2; exit 2; }
	$(IN_VENV) python -m higgs_pipe.check_v3 --base "$(BASE)" $(if $(CODEC),--codec "$(CODEC)")

# Three workers, each with files of its own: on two cores, as a quarter of the time is waiting.
# conftest.py puts the slow files first.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE pytest -n 3 --dist loadfile \
  --no-loadscope-reorder $(if $(SEED),--randomly-seed=$(SEED))

.PHONY: test
test: $(READY)
	$(IN_VENV) $(PYTEST)

.PHONY: quick
quick: $(READY)
	$(IN_VENV) $(PYTEST) -m "not slow"

.PHONY: repeats
repeats: $(READY)
	$(IN_VENV) OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python bench/repeats.py \
	  --times $(or $(TIMES),50) --page docs/proof.md $(TESTS)

.PHONY: mutants
mutants: $(READY)
	$(IN_VENV) PYTHONPATH=tests:bench OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m mutants.run \
	  $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(ONLY),--only $(ONLY)) $(if $(PAGE),--page $(PAGE))

.PHONY: faults
faults: $(READY)
	$(IN_VENV) FAULTS_NUM_KILLS=10 FAULTS_PAGE=docs/proof.md OMP_NUM_THREADS=1 \
	  OMP_WAIT_POLICY=PASSIVE pytest tests/faults tests/workflow/test_interruption.py

.PHONY: bench
bench: $(READY)
	$(IN_VENV) PYTHONPATH=. python bench/all.py --output bench/results.json \
	  --page docs/proof.md --performance docs/performance.md

.PHONY: soak
soak: $(READY)
	$(IN_VENV) PYTHONPATH=. OMP_NUM_THREADS=1 python bench/soak.py --page docs/proof.md \
	  --output bench/soak.json

# Tools that tests do not need: atheris and coverage.
TOOLS := $(VENV)/tools
$(TOOLS): requirements-tools.txt | $(READY)
	$(BIN)/uv pip install --quiet --target $@ --require-hashes -r $<
	@touch $@

.PHONY: fuzz
fuzz: $(TOOLS)
	$(IN_VENV) PYTHONPATH=tests:bench:.:$(TOOLS) OMP_NUM_THREADS=1 python -m fuzz.page \
	  $(if $(SECONDS),--seconds $(SECONDS)) $(if $(PAGE),--page $(PAGE))

# Apart from the tools above: theirs would hide packages of the environment.
AUDIT := $(VENV)/audit
$(AUDIT): requirements-audit.txt | $(READY)
	$(BIN)/uv pip install --quiet --target $@ --require-hashes -r $<
	@touch $@

.PHONY: audit
audit: $(AUDIT)
	PYTHONPATH=$(AUDIT) $(BIN)/python -m pip_audit --strict --disable-pip --require-hashes \
	  --progress-spinner off $(foreach file,$(wildcard requirements*.txt),--requirement $(file))

SBOM := sbom.cdx.json
.PHONY: sbom
sbom: $(AUDIT)
	PYTHONPATH=$(AUDIT) $(BIN)/python -m cyclonedx_py requirements requirements.txt \
	  --pyproject pyproject.toml --no-validate --output-reproducible --of JSON -o $(SBOM)

.PHONY: coverage
coverage: $(TOOLS)
	$(IN_VENV) PYTHONPATH=tests:bench:$(TOOLS) OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE \
	  python -m uncovered.run $(if $(PAGE),--page $(PAGE))

.PHONY: check
check: $(READY)
	$(IN_VENV) ruff check .
	$(IN_VENV) ruff format --check .
	$(IN_VENV) mypy
	$(IN_VENV) snakefmt --check Snakefile workflow
	$(IN_VENV) snakemake --lint

.PHONY: generated
generated: $(READY)
	$(BIN)/python -m higgs_pipe.config.schema > workflow/schemas/config.schema.yaml
	$(BIN)/python -m higgs_pipe.config.reference > docs/config.md

.PHONY: docs
docs: $(READY)
	$(BIN)/mkdocs build --strict

.PHONY: environment
environment: $(READY)

$(READY): requirements-bootstrap.txt requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is missing or older than Python 3.11;" \
	    "name a newer one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-bootstrap.txt
	$(BIN)/uv pip sync --python $(BIN)/python --require-hashes requirements-bootstrap.txt requirements.txt
	@touch $@

.PHONY: clean
clean:
	rm -rf results resources logs benchmarks .snakemake site
