# Every target sets up what it needs first; running one twice does nothing twice.
PYTHON ?= python3
VENV := .venv
TRL := .venv-trl
VERIFIERS := .venv-verifiers
VERIFIERS_NEXT := .venv-verifiers-next
READY := $(VENV)/.ready
# Torch's threads must not spin while they wait: on a shared machine that costs more than it gains.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup train ablation test test-slow test-mutation test-verifiers check format benchmark-step benchmark-model
.PHONY: benchmark-sandbox clean

help:
	@echo "make train           train a tiny GPT-OSS on Ledger (minutes, on a laptop's CPU)"
	@echo "make ablation        what breaks a mixture of experts with sinks, one cause at a time (about 15 minutes, 2 cores)"
	@echo "make test            run the tests"
	@echo "make test-slow       the long ones: the hostile suite in both tiers, 10,000 calls, 20,000 fuzzed answers"
	@echo "make test-mutation   take each protection out of the sandbox and see named hostile cases succeed"
	@echo "make test-verifiers  the adapter against the verifiers package, old and new, each in a virtual environment of its own"
	@echo "make check           lint, formatting and types"
	@echo "make benchmark-step  a whole GRPO step against TRL's, side by side"
	@echo "make benchmark-model attention, experts, log-probs and a training step against transformers and TRL"
	@echo "make benchmark-sandbox  calls a second and processor time a call, against a cold interpreter"
	@echo "make clean           remove the virtual environments"

setup: $(READY)

# The pins name torch's plain version: where the package index offers several builds, install the one you want first.
$(READY): requirements.lock pyproject.toml
	@echo "setup: virtual environment in $(VENV), pinned dependencies from requirements.lock"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: Lockstep needs Python 3.11 or newer; make PYTHON=python3.11"; exit 1; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

train: setup
	$(VENV)/bin/lockstep train recipes/ledger.py

ablation: setup
	$(VENV)/bin/python recipes/ablation.py

test: setup
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

test-slow: setup
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m slow

test-mutation: setup
	$(VENV)/bin/python tests/sandbox/mutation.py

# verifiers has two interfaces, and each is tried with the last release that has it. uv is what 0.4 starts programs with.
$(VERIFIERS)/.ready: tests/environments/verifiers/requirements.txt $(wildcard tests/environments/verifiers/example/*)
	@echo "setup: verifiers below 0.4 in its own virtual environment $(VERIFIERS)"
	@test -x $(VERIFIERS)/bin/python || $(PYTHON) -m venv $(VERIFIERS)
	$(VERIFIERS)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/environments/verifiers/requirements.txt
	$(VERIFIERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall ./tests/environments/verifiers/example
	@touch $@

$(VERIFIERS_NEXT)/.ready: tests/environments/verifiers/requirements_next.txt $(wildcard tests/environments/verifiers/example_next/* tests/environments/verifiers/example_next/*/*)
	@echo "setup: verifiers 0.4 in its own virtual environment $(VERIFIERS_NEXT)"
	@test -x $(VERIFIERS_NEXT)/bin/python || $(PYTHON) -m venv $(VERIFIERS_NEXT)
	$(VERIFIERS_NEXT)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/environments/verifiers/requirements_next.txt
	$(VERIFIERS_NEXT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall ./tests/environments/verifiers/example_next
	PATH="$(abspath $(VERIFIERS_NEXT))/bin:$$PATH" $(VERIFIERS_NEXT)/bin/python tests/environments/verifiers/prepare_program.py
	@touch $@

# Without the conftest above, which needs torch.
test-verifiers: $(VERIFIERS)/.ready $(VERIFIERS_NEXT)/.ready
	$(VERIFIERS)/bin/python -m pytest --confcutdir=tests/environments tests/environments/verifiers
	PATH="$(abspath $(VERIFIERS_NEXT))/bin:$$PATH" $(VERIFIERS_NEXT)/bin/python -m pytest --confcutdir=tests/environments tests/environments/verifiers

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(TRL)/.ready: benchmarks/requirements-trl.txt
	@echo "setup: TRL in its own virtual environment $(TRL)"
	@test -x $(TRL)/bin/python || $(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements-trl.txt
	@touch $@

benchmark-step: setup $(TRL)/.ready
	$(VENV)/bin/python benchmarks/step.py

benchmark-model: setup $(TRL)/.ready
	$(VENV)/bin/python benchmarks/model.py

benchmark-sandbox: setup
	$(VENV)/bin/python benchmarks/sandbox.py

clean:
	rm -rf $(VENV) $(TRL) $(VERIFIERS) $(VERIFIERS_NEXT)
