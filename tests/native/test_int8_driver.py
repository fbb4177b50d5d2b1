"""The int8 kernels without Python, through a driver program: bit by bit what exact integers say, on every path."""

import platform
import subprocess

import pytest
from native_build import KERNELS, ROOT, run, tool
from native_drivers import RECORDED, Driver, built, cases_from, check_instructions, int8_instruction_sets

DRIVER = Driver("int8_driver", cases=488)


@pytest.fixture
def cases(tmp_path_factory):
    return cases_from("int8_cases", tmp_path_factory.getbasetemp())


@pytest.fixture
def driver(tmp_path_factory):
    return built("int8_driver", tmp_path_factory.getbasetemp())


def test_every_path_gives_the_same_bits(driver, cases):
    DRIVER.passed(run(driver, "cases", cases), int8_instruction_sets())


def test_the_driver_notices(driver, cases, tmp_path):
    data = bytearray(cases.read_bytes())
    data[20 * 8] ^= 0x40  # the first x
    (tmp_path / "off.bin").write_bytes(data)
    done = subprocess.run([driver, "cases", tmp_path / "off.bin"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "case 0, y: element" in done.stderr


@pytest.mark.slow
def test_under_sanitizers(tmp_path, cases):
    DRIVER.passed(run(DRIVER.sanitized(tmp_path), "cases", cases), int8_instruction_sets())


@pytest.mark.slow
def test_on_aarch64(tmp_path, cases):
    DRIVER.passed(run(*DRIVER.for_aarch64(tmp_path), "cases", cases), {"neon", "generic"})


@pytest.mark.parametrize("layer", RECORDED["int8"])
def test_instructions(layer, driver, tmp_path):
    check_instructions("int8", layer, driver, tmp_path)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the tiles are for x86-64")
@pytest.mark.parametrize("flags", [["-mavx2"], ["-mavx512bw", "-mavx512vl"]], ids=" ".join)
def test_the_tiles_compile(flags):
    """The program that times the tiles alone takes them from the kernels."""
    program = ROOT / "benchmarks/int8_tiles.cpp"
    run(tool("g++"), "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *flags, f"-I{KERNELS}", program)
