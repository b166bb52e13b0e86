# Every target first makes the environment that it needs; `make` alone lists the targets.
#   ARGS="…"       passed on: to the demo, to pytest, to the fault run or the soak
#   PYTHON=…       the interpreter for .venv instead of the first that fits

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint types imports pytest faults soak format lock wheel images sbom audit release-check clean
# What another installation put on these paths (ROS does) must not shadow what .venv pins.
unexport PYTHONPATH PYTHONHOME

BIN := .venv/bin
PYTHON_FILES := consumer trainer engine framegate.py tests docs/notebooks

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## broker, training, consumer and four cameras on this machine, in a few minutes
	@PYTHON="$(PYTHON)" .ci/setup.sh base
	@$(BIN)/framegate demo $(ARGS)

test: lint types imports pytest ## everything CI runs: the four targets below

lint: .dev ## ruff: style and format
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)

types: .dev ## mypy, strict
	$(BIN)/mypy

imports: .dev ## who may import whom
	$(BIN)/lint-imports

# Each process takes whole files and has brokers of its own, so not one for every core.
pytest: .dev ## the tests, in two processes; ARGS="tests/engine -k resize" for some, ARGS="-n 0 --pdb" in this one
	@PYTHON="$(PYTHON)" .ci/setup.sh tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

faults: .dev ## break a plant of three brokers for 25 minutes at most, and check every frame; ARGS="--minutes 5 --seed 2"
	@PYTHON="$(PYTHON)" .ci/setup.sh system
	@$(BIN)/python -m tests.faults.run $(ARGS)

soak: .dev ## frames at capacity for 35 minutes with a bundle replaced every minute; ARGS="--minutes 5"
	@PYTHON="$(PYTHON)" .ci/setup.sh system
	@$(BIN)/python -m tests.faults.soak $(ARGS)

format: .dev ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)

lock: ## write requirements/*.txt anew from pyproject.toml; UPGRADE=1 for newer versions
	@PYTHON="$(PYTHON)" UPGRADE="$(UPGRADE)" .ci/setup.sh lock

wheel: .dev ## build dist/framegate-*.whl
	$(BIN)/hatchling build -t wheel

images: .dev ## build the three images with Docker, tagged as the compose file and the chart have them
	version=$$($(BIN)/framegate --version | awk '{ print $$3 }'); \
	for target in cpu gpu trainer; do \
		docker build --target $$target --tag framegate:$$target --tag framegate:$$version-$$target \
			--build-arg VERSION=$$version --build-arg REVISION="$$(git rev-parse HEAD)" . || exit; \
	done

sbom: .dev ## a bill of materials (CycloneDX) for each image, in dist/sbom
	.ci/release.sh sbom

audit: .dev ## known vulnerabilities of every locked package; fails where one could not be audited
	.ci/release.sh audit $(ARGS)

release-check: .dev ## wheel, sdist and bills of materials in dist, looked at; on the day of a release
	.ci/release.sh check

clean: ## remove the environment, builds and caches
	rm -rf .venv .venv-tools .tools dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(PYTHON_FILES) -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: .dev
.dev:
	@PYTHON="$(PYTHON)" .ci/setup.sh dev
