# make demo          make .venv, install, and turn a prompt into an image
# make test          install what the tests need and run them
# make test-all      make test, then the slow tests that it leaves out
# make check         look at the code without running it
# make lock          look up the newest packages and write their versions to requirements/
# make test-latest   run the tests with the newest packages that setup.py allows, in .venv-latest
# make test-oldest   run the tests with the oldest packages that setup.py allows, in .venv-oldest
# make clean         remove what these made, except images
#
# PYTHON=python3.12 chooses the interpreter that .venv is made with (3.10 or newer);
# PROMPT="3d emoji of a fox, yellow background" is the prompt of make demo; PYTEST="-k ddim" what make test runs.

PYTHON ?= python3
PROMPT ?= 3d emoji of a {hamburger|skull|red heart}
PYTEST ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
LOCK := requirements/lock.txt
NO_DEPS := requirements/no-deps
SLOW := slow and not gpu and not openvino and not ipex and not slurm and not browser

.PHONY: demo test test-all test-latest test-oldest check lock clean

demo: $(VENV)/.core
	@start=$$(date +%s); set -e; \
	$(PY) scripts/txt2img.py --prompt "$(PROMPT)" --combinations all --n_samples 3 --n_iter 1 \
	--sampler euler_a --steps 15 --outdir outputs/demo; \
	echo "\"$(PROMPT)\" took $$(($$(date +%s) - start)) s, loading included:" \
	"$$(pwd)/$$(ls -1t outputs/demo/*.png outputs/demo/samples/*.png | head -n 1)"

test: $(VENV)/.test
	$(PY) -m pytest $(PYTEST)

test-all: test
	$(PY) -m pytest -m "$(SLOW)" $(PYTEST)

check: $(VENV)/.test
	$(PY) -m ruff check .

clean:
	rm -rf $(VENV) .venv-latest .venv-oldest build dist *.egg-info .pytest_cache .ruff_cache

# The stamps below are newer than setup.py and the lock once everything they ask for is installed.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	|| { echo "$(PYTHON) is older than 3.10: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.made setup.py $(LOCK)
	@echo "Installing (some minutes the first time)"
	@$(PIP) install --quiet --constraint $(LOCK) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.core $(NO_DEPS).txt
	@echo "Installing what the tests need"
	@$(PIP) install --quiet --constraint $(LOCK) --editable ".[test]"
	@$(PIP) install --quiet --no-deps --requirement $(NO_DEPS).txt
	@touch $@

# One lock serves Python 3.10 and newer on every platform: a package that has no version for all of them has a
# line for each.
COMPILE = uv pip compile --quiet --python-version 3.10 --no-annotate --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock" --upgrade

lock: $(VENV)/.made
	@$(PIP) install --quiet uv
	$(VENV)/bin/$(COMPILE) --universal --constraint requirements/pins.txt --extra test setup.py --output-file $(LOCK)
	$(VENV)/bin/$(COMPILE) --universal --no-deps $(NO_DEPS).in --output-file $(NO_DEPS).txt

test-latest:
	$(PYTHON) -m venv --clear .venv-latest
	.venv-latest/bin/python -m pip install --quiet --editable ".[test]"
	.venv-latest/bin/python -m pip install --quiet --no-deps --requirement $(NO_DEPS).in
	.venv-latest/bin/python -m pytest $(PYTEST)

# Old packages beside new ones warn of each other.
test-oldest:
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/uv pip compile --quiet --resolution lowest-direct --extra test setup.py \
	--output-file .venv-oldest/oldest.txt
	.venv-oldest/bin/python -m pip install --quiet --constraint .venv-oldest/oldest.txt --editable ".[test]"
	.venv-oldest/bin/python -m pip install --quiet --no-deps --requirement $(NO_DEPS).in
	.venv-oldest/bin/python -m pytest -W default $(PYTEST)
