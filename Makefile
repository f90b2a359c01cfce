# The two commands of the README: `make serve` and `make test`. Each makes its own environment on the first call
# and reuses it until pyproject.toml or constraints.txt changes.

PYTHON ?= python3
SERVE_ENV := .venv
TEST_ENV := .venv-test
# Where ruff, mypy, buf and pytest are run from: `make check BIN=.venv/bin` uses an environment of your own.
BIN ?= $(TEST_ENV)/bin
# The extra that `make install-gpu` installs.
GPU ?= tensorrt
# Flags for `make serve`, for example ARGS='--listen 0.0.0.0:50051'.
ARGS ?=

PROTO := dragoman/v1/translation.proto
PROTO_DIR := proto/dragoman/v1

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help serve install-gpu test check lint types unit proto format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

# Editable, so that an updated checkout is served without installing again. The stamp is written last: an install
# that was cut off is taken up again.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Dragoman needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing into $(1) (once)" >&2
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --constraint constraints.txt --editable '$(2)'
	@touch $@
endef

$(SERVE_ENV)/.installed: pyproject.toml constraints.txt
	$(call install,$(SERVE_ENV),.)

$(TEST_ENV)/.installed: pyproject.toml constraints.txt
	$(call install,$(TEST_ENV),.[test])

serve: $(SERVE_ENV)/.installed  ## serve the bundled model on 127.0.0.1:50051
	@exec $(SERVE_ENV)/bin/dragoman serve $(ARGS)

# onnxruntime and onnxruntime-gpu write the same files: one replaces the other.
install-gpu: $(SERVE_ENV)/.installed  ## let `make serve` use an NVIDIA GPU; GPU=tensorrt-rtx for GeForce and RTX cards
	$(SERVE_ENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$(GPU)]'
	$(SERVE_ENV)/bin/python -m pip uninstall --quiet --yes onnxruntime
	$(SERVE_ENV)/bin/python -m pip install --quiet --constraint constraints.txt 'onnxruntime-gpu[cuda,cudnn]'

test: $(TEST_ENV)/.installed  ## install everything and run all checks
	@$(MAKE) --no-print-directory check BIN=$(TEST_ENV)/bin

check: lint types unit  ## what CI runs: lint, types, tests

lint:  ## ruff and buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build
	$(BIN)/python -m grpc_tools.protoc -I proto -I "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		--include_imports --include_source_info -o build/image.binpb $(PROTO)
	$(BIN)/buf lint build/image.binpb --path dragoman --config buf.yaml

types:  ## mypy --strict
	$(BIN)/mypy

unit:  ## pytest
	$(BIN)/python -m pytest

proto:  ## generate the Python stubs from the .proto
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto \
		-I "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		--python_out proto --grpc_python_out proto --mypy_out proto --mypy_grpc_out proto $(PROTO)

format:  ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove environments, builds and caches
	rm -rf $(SERVE_ENV) $(TEST_ENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
