# make demo    the main job on real images, from nothing but Python and make
# make test    the test suite (make test-all: with what takes long)
# make test-triton  the GPU kernels compiled and interpreted with Triton TRITON_NEWEST=3.9.0, which is put into build/ and not installed
# make test-python310  the oldest Python that is supported: installs and imports everything under it, needs python3.10
# make bench   the benchmarks of the CPU's kernels, into benchmarks/results/
# make driver  the CPU library's drivers without Python, into build/, for limits.py and count_instructions.py
# make test-arm  the CPU library cross-compiled for aarch64, under qemu (Debian: g++-aarch64-linux-gnu qemu-user-static)
# make test-riscv, make test-arm-m  exported networks on processors with and without a multiplier, in qemu; DATA=FOLDER
# make dist    what PyPI takes, into dist/: the sources, and a manylinux wheel that is built from them; nothing is uploaded
# make docs    the documentation as a site, docs/_build/html; make figures draws its pictures
# make check   lint, format, types, and nothing newer than Python 3.10
# make gpu     on a machine with a GPU, within GPU_MINUTES=13: tests of the kernels and benchmarks, the most telling first;
#              from the source tree, without the network; STAGES=tests, for one, runs only these (benchmarks/gpu_session.py)
# make cards   the model cards in hub_cards/, from results.json
# make gpu-train  the paper's trainings on a GPU for MINUTES=10, to be taken up again; DATA=FOLDER has MNIST and CIFAR-10
# make kernel  the kernel project as it is uploaded to the Hub, into build/kernel/
PYTHON ?= python3
BIN := .venv/bin
PYTHON310 ?= python3.10
TRITON_NEWEST ?= 3.9.0
GPU_WORKERS ?= 8
GPU_MINUTES ?= 13

MINUTES ?= 10

.PHONY: install demo test test-ci test-all test-triton newest-triton test-python310 test-arm test-riscv test-arm-m bench driver dist docs figures check gpu gpu-train cards kernel clean

install: .venv/installed

.venv/installed: pyproject.toml setup.py $(wildcard kernels/cpu/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "adder_zoo needs Python 3.10 or newer; make PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no recipes/demo.py

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

# Of the slow tests: memory errors in the native kernels, counted instructions and machine code, the larger shapes under
# Triton's interpreter, published accuracies on all images, a run stopped in two processes, the tutorials.
test-ci: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow \
		tests/native/test_fuzz.py tests/native/test_driver.py tests/native/test_int8_driver.py tests/ops/test_triton.py \
		tests/ops/test_triton_aot.py tests/models/test_official.py tests/release/test_distribution.py \
		tests/docs/test_examples.py tests/training/test_launch.py tests/training/test_resume.py \
		tests/training/test_equal_batches.py "tests/hub/test_hub.py::test_every_fault_at_every_call_of_a_pull[once]" \
		--deselect tests/ops/test_triton_aot.py::test_every_kernel_compiles \
		--deselect tests/models/test_official.py::test_reference_and_cpu_answer_alike

build/triton-$(TRITON_NEWEST)/triton: | .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps --target build/triton-$(TRITON_NEWEST) triton==$(TRITON_NEWEST)

newest-triton:
	@echo $(TRITON_NEWEST)

test-triton: build/triton-$(TRITON_NEWEST)/triton
	PYTHONPATH=build/triton-$(TRITON_NEWEST) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/ops/test_triton_aot.py \
		tests/ops/test_triton_powers.py -k "machine_code and (sm_80 or sm_90)"
	PYTHONPATH=build/triton-$(TRITON_NEWEST) OMP_NUM_THREADS=1 TRITON_INTERPRET=1 ADDER_ZOO_NO_OVERFLOW_CHECKS=1 \
		$(BIN)/python -m pytest -n 2 -m 'not slow' tests/ops/test_triton_special.py tests/ops/test_triton_powers.py

test-all: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-python310:
	@$(PYTHON310) -c '' || { echo "needs Python 3.10: make test-python310 PYTHON310=PATH"; exit 1; }
	rm -rf build/lib* build/python310  # modules of an earlier version would be installed again
	$(PYTHON310) -m venv build/python310
	build/python310/bin/python -m pip install --quiet --upgrade pip
	build/python310/bin/python -m pip install --quiet '.[dev]'
	build/python310/bin/python tests/support/import_everything.py

test-arm: install
	@command -v aarch64-linux-gnu-g++ >/dev/null && { command -v qemu-aarch64-static || command -v qemu-aarch64; } >/dev/null || \
		{ echo "needs Debian's packages g++-aarch64-linux-gnu and qemu-user-static"; exit 1; }
	$(BIN)/python -m pytest tests/native/test_driver.py tests/native/test_int8_driver.py -k aarch64 -rs

test-riscv: install
	$(BIN)/python benchmarks/processors.py --data-dir "$(or $(DATA),$(ADDER_ZOO_DATA))" --processors rv32i rv32e rv32im

test-arm-m: install
	$(BIN)/python benchmarks/processors.py --data-dir "$(or $(DATA),$(ADDER_ZOO_DATA))" --processors cortex-m0 cortex-m4

bench: install
	$(BIN)/python benchmarks/cpu.py --threads 1 --json benchmarks/results/cpu.json
	$(BIN)/python benchmarks/cpu.py --parts threads --json benchmarks/results/cpu-threads.json

driver: install
	mkdir -p build
	for name in driver int8_driver; do \
		g++ -std=c++17 -O1 -fno-trapping-math -fno-math-errno -Ikernels/cpu tests/native/$$name.cpp \
			src/adder_zoo/_native.so -Wl,-rpath,$(CURDIR)/src/adder_zoo -o build/$$name || exit 1; done

dist: install
	rm -rf build/dist dist
	$(BIN)/python -m build --outdir build/dist
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist build/dist/*.whl
	cp build/dist/*.tar.gz dist/

docs: install
	$(BIN)/python -m sphinx -W -n --keep-going docs docs/_build/html

figures: install
	$(BIN)/python docs/figures/what_it_is.py
	$(BIN)/python docs/figures/plots.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror kernels/cpu/*.h kernels/cpu/*.cpp tests/native/*.cpp benchmarks/*.cpp
	$(BIN)/mypy
	$(BIN)/vermin --quiet --no-tips --violations -t=3.10- src recipes benchmarks tests docs kernels setup.py
	$(BIN)/vermin --quiet --no-tips --violations -t=3.9- kernels/adder2d

gpu:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_session.py --minutes $(GPU_MINUTES) --workers $(GPU_WORKERS) \
		$(if $(STAGES),--stages $(STAGES))

cards: install
	$(BIN)/python -c 'from adder_zoo.hub.index import write_shipped; write_shipped("hub_cards")'

gpu-train: install
	$(BIN)/python recipes/gpu_train.py --minutes $(MINUTES) $(if $(DATA),--data-dir $(DATA))

kernel: install
	$(BIN)/python -c 'from adder_zoo.hub import kernel_project; print(kernel_project.build("build/kernel"))'

clean:
	rm -rf .venv build dist docs/_build runs/demo src/*.egg-info src/adder_zoo/_native*.so
