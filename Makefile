# Everything runs in .venv; `make demo` makes it. PYTHON chooses the interpreter that it is made with.
PYTHON ?= python3
RUN := .venv/bin/
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo setup test slow parity lint bench bench-samplers train

demo: .venv/ready
	$(RUN)sfumato generate "a red apple, 3d" --seed 7 --out pictures

setup: .venv/dev

test: .venv/dev
	$(RUN)python -m pytest -n 2 --dist loadgroup

slow: .venv/dev
	$(RUN)python -m pytest -m slow

parity: .venv/dev
	$(RUN)python -m pytest -m parity tests/peers

lint: .venv/dev
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)pyright --pythonpath $(RUN)python
	$(RUN)lint-imports

bench: .venv/ready
	$(RUN)python benchmarks/generate.py

bench-samplers: .venv/dev
	$(RUN)python benchmarks/samplers.py --out docs/pictures/samplers.png

train: .venv/ready
	$(RUN)sfumato train emoji --out runs/emoji

.venv/ready: pyproject.toml constraints.txt
	test -x $(RUN)python || $(PYTHON) -m venv .venv
	$(RUN)python -m pip install -q --compile -c constraints.txt -e .
	touch $@

.venv/dev: .venv/ready
	$(RUN)python -m pip install -q --compile -c constraints.txt -e ".[dev,data,peers]"
	touch $@
