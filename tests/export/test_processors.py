"""Exported networks on other processors, in qemu: Python's integers, and no multiplication where none is promised."""

import sys
from pathlib import Path

import pytest
from integer_networks import integer_network

import adder_zoo

sys.path.append(str(Path(__file__).parents[2] / "benchmarks/bare_metal"))
import cmsis_nn
import emulate


def measured(name, folder, network, images, *defines):
    try:
        emulate.check_tools([name])
    except emulate.Missing as error:
        pytest.skip(str(error))
    if not (folder / "tiny.c").exists():
        adder_zoo.export_c(network, folder, "tiny", images)
    got = emulate.measure(emulate.PROCESSORS[name], folder, "tiny", images.numpy().tobytes(), len(images), defines)
    wanted = [f"{' '.join(map(str, row))}: {row.index(max(row))}" for row in network(images).tolist()]
    assert got.answers == wanted
    assert all(count > 1000 for count in got.instructions)
    return got


@pytest.mark.parametrize("name", list(emulate.PROCESSORS))
@pytest.mark.parametrize("kind", ["mixed", "grouped"])
def test_processors_give_the_integers_of_python(name, kind, tmp_path):
    network, _, images = integer_network(kind, multiplier_free=True)
    assert not measured(name, tmp_path / "c", network, images[:2]).multiplies


def test_products_are_seen_in_the_disassembly(tmp_path):
    """The check for multiplications can fail: a convolution has some, as instructions or as calls."""
    network, _, images = integer_network("mixed", "conv")
    for name in ("rv32i", "rv32im", "cortex-m0", "cortex-m4"):
        assert measured(name, tmp_path / "c", network, images[:1]).multiplies
    measured("rv32i", tmp_path / "c", network, images[:1], "PRODUCTS_BY_BITS")


def test_sources_of_cmsis_nn_that_are_not_there_are_named(tmp_path):
    network, _, images = integer_network("mixed", "conv")
    with pytest.raises(ValueError, match=r"does not hold the sources of CMSIS-NN: .*arm_convolve_wrapper_s8.c"):
        cmsis_nn.write(network, images, tmp_path, tmp_path / "c", "network")


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(emulate.shutil, "which", lambda tool: None)
    with pytest.raises(emulate.Missing, match="gcc-riscv64-unknown-elf qemu-system-misc: apt-get install"):
        emulate.check_tools(["rv32i"])
