# make demo     make .venv, install, and turn a prompt into a picture
# make test     install what the tests need and run them
# make check    look at the code without running it
# make clean    remove .venv and what was built
#
# PYTHON=python3.12 chooses the interpreter that .venv is made with (3.10 or newer);
# PROMPT="3d emoji of a fox, yellow background" chooses what make demo draws; PYTEST="-k ddim" what make test runs.

PYTHON ?= python3
PROMPT ?= 3d emoji of a cat, blue background
PYTEST ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

.PHONY: demo test check clean

demo: $(VENV)/.core
	@start=$$(date +%s); set -e; \
	$(PY) scripts/txt2img.py --prompt "$(PROMPT)" --n_samples 4 --n_iter 1 --seed 42 --scale 4 --outdir outputs/demo; \
	echo "\"$(PROMPT)\" took $$(($$(date +%s) - start)) s, loading included:" \
	"$$(pwd)/$$(ls -1t outputs/demo/grid-*.png | head -n 1)"

test: $(VENV)/.test
	$(PY) -m pytest $(PYTEST)

check: $(VENV)/.test
	$(PY) -m ruff check .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache

# The stamps below are newer than setup.py once everything it asks for is installed.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	|| { echo "$(PYTHON) is older than 3.10: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.made setup.py
	@echo "Installing (about two minutes the first time)"
	@$(PIP) install --quiet --editable .
	@# The watermark needs OpenCV, whose usual build wants a display library that servers lack.
	@$(PY) -c 'import cv2' 2>/dev/null || $(PIP) install --quiet --force-reinstall --no-deps opencv-python-headless
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "Installing what the tests need"
	@$(PIP) install --quiet --editable ".[test]"
	@# Its samplers run on our model in a test. What it asks for beyond that (wandb, kornia, clip, numpy<2) serves
	@# its own training; what sampling needs (torchdiffeq, torchsde) is in setup.py.
	@$(PIP) install --quiet --no-deps "k-diffusion>=0.1.1"
	@touch $@
