# The developer's entry points. `make` alone lists them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export PYTHONPATH := $(CURDIR)/src

.PHONY: list
list:
	@echo "make demo        the whole story on this machine, in under 3 minutes"
	@echo "make test        checks and fast tests (what .ci/run calls)"
	@echo "make check       ruff, mypy, import contracts"
	@echo "make test-slow   real processes, faults, fuzzing of the API"
	@echo "make test-oci    pull images with podman, skopeo and containerd, commits with ostree; installs them"
	@echo "make tools       Debian packages that tests start (swtpm, ...); needs root"
	@echo "make schemas     write schemas/, docs/openapi.json, docs/cli.md, tables of docs/fleet-repo.md"
	@echo "make bench-NAME  a benchmark: converge, wake, plan, agent, identity, egress, workload, rollout_step, relay, lossy, publish"
	@echo "make bench-delta delta updates against OSTree and casync; FROM=dir TO=dir: of any two trees"

$(VENV)/installed: pyproject.toml constraints.txt
	@./scripts/venv "$(PYTHON)" "$(VENV)"
	@touch $@

.PHONY: setup
setup: $(VENV)/installed

.PHONY: tools
tools:
	@./scripts/tools

.PHONY: object-store
object-store: setup
	@./scripts/object-store "$(VENV)"

.PHONY: check
check: setup
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: test
test: check tools
	$(BIN)/python -m pytest -m "not slow"

.PHONY: test-slow
test-slow: setup tools object-store
	$(BIN)/python -m pytest -m "slow and not images" --timeout 600

.PHONY: test-oci
test-oci: setup
	@./scripts/tools "podman:podman skopeo:skopeo ostree:ostree ctr:containerd"
	$(BIN)/python -m pytest -m images --timeout 600

.PHONY: demo
demo: setup
	$(BIN)/python -m edgewise demo $(ARGS)

.PHONY: schemas
schemas: setup
	$(BIN)/python -m edgewise schema --write schemas
	$(BIN)/python scripts/reference
	$(BIN)/python -m edgewise openapi --write docs/openapi.json
	$(BIN)/python -m edgewise reference --write docs/cli.md

.PHONY: bench-rivals
bench-rivals:
	@PATH="$$PATH:/usr/sbin" command -v nginx wrk >/dev/null && exit 0; \
	apt-get install -y -qq --no-install-recommends nginx-light wrk

bench-egress bench-identity: bench-rivals

.PHONY: bench-delta-rivals
bench-delta-rivals:
	@(command -v ostree && command -v casync && command -v mmdebstrap) >/dev/null || { \
	apt-get update -qq && \
	apt-get install -y -qq --no-install-recommends ostree casync mmdebstrap debian-archive-keyring; }

# FROM=dir TO=dir: any two trees; without, pairs made from Debian packages (root).
bench-delta: setup bench-delta-rivals
	$(BIN)/python bench/delta.py $(if $(FROM),--from "$(FROM)" --to "$(TO)") $(ARGS)

bench-%: setup
	$(BIN)/python bench/$*.py $(ARGS)
