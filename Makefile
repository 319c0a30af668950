# Everything from a bare python3 (3.11 or newer): `make benchmark` and `make test` set up .venv first if they must.
#
#   make benchmark                    the default profile, config/laptop.yaml
#   make benchmark PROFILE=smoke      another file in config/
#   make benchmark ARGS="--dry-run"   further arguments for Snakemake
#   make gate PROFILE=smoke           the same, then hold its table against results/reference/smoke.csv
#   make test                         all tests; ARGS="-k config" for some
#   make lint                         ruff and mypy
#   make clean                        remove .venv (results are left alone)

PYTHON ?= python3
VENV := .venv
# The programs in .venv/bin name the folder that they were made in; `python -m` works after a move too.
RUN := $(VENV)/bin/python -m

.PHONY: benchmark gate test lint clean
.DELETE_ON_ERROR:

benchmark gate: $(VENV)/complete
ifneq ($(and $(PROFILE),$(filter -C --config --config=%,$(ARGS))),)
	@echo "error: with --config in ARGS, name the profile there: ARGS='--config profile=$(PROFILE) ...'" >&2; exit 2
endif
	$(RUN) snakemake --cores all $(if $(filter gate,$@),gate )$(ARGS) $(if $(PROFILE),--config profile=$(PROFILE))

# One core a process: the tests run beside each other, and torch would otherwise start as many threads in each. Files
# are dealt out in the order of tests/conftest.py, the longest first, and not in that of their numbers of tests.
test: $(VENV)/complete
	OMP_NUM_THREADS=1 $(RUN) pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/complete
	$(RUN) ruff check .
	$(RUN) mypy

clean:
	rm -rf $(VENV)

# Written last, so that a half-made environment is made again, and when the packages it should hold have changed.
# Compiled on all cores, for pip takes one, and this is most of its time; some files of the packages are not Python.
$(VENV)/complete: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: $(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: $(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@echo "setting up $(VENV) from requirements.lock: this takes some minutes"
	@rm -f $@
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check --no-compile -c requirements.lock -e '.[dev]'
	@$(RUN) compileall -qq -j 0 $(VENV)/lib > /dev/null 2>&1 || true
	touch $@
