"""The native library without Python: a driver program on cases from a file: sanitized, for aarch64, and counted."""

import subprocess

import pytest
from native_build import run
from native_drivers import RECORDED, Driver, built, cases_from, check_instructions, instruction_sets

DRIVER = Driver("driver", cases=161)


@pytest.fixture
def cases(tmp_path_factory):
    return cases_from("native_cases", tmp_path_factory.getbasetemp())


@pytest.fixture
def driver(tmp_path_factory):
    return built("driver", tmp_path_factory.getbasetemp())


def test_driver(driver, cases):
    DRIVER.passed(run(driver, "cases", cases), instruction_sets())


def test_driver_notices(driver, cases, tmp_path):
    """A result that is off, and a file that ends too early."""
    data = bytearray(cases.read_bytes())
    (tmp_path / "short.bin").write_bytes(data[: len(data) // 2])
    assert subprocess.run([driver, "cases", tmp_path / "short.bin"], capture_output=True).returncode == 2
    data[16 * 8 + 3] ^= 0x40  # the exponent of the first x
    (tmp_path / "off.bin").write_bytes(data)
    done = subprocess.run([driver, "cases", tmp_path / "off.bin"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "case 0, " in done.stderr


@pytest.mark.slow
def test_driver_under_sanitizers(tmp_path, cases):
    DRIVER.passed(run(DRIVER.sanitized(tmp_path), "cases", cases), instruction_sets())


@pytest.mark.slow
def test_driver_on_aarch64(tmp_path, cases):
    DRIVER.passed(run(*DRIVER.for_aarch64(tmp_path), "cases", cases), {"neon", "generic"})


# valgrind takes a second for five million instructions
COUNTED = [pytest.param(k, marks=[pytest.mark.slow] * (n > 5_000_000)) for k, n in RECORDED["layers"].items()]


@pytest.mark.parametrize("layer", COUNTED)
def test_instructions(layer, driver, tmp_path):
    check_instructions("layers", layer, driver, tmp_path)
