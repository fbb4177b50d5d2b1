import os

import pytest
import torch


def pytest_configure(config):
    # The build writes a pyproject.toml that says the same.
    config.addinivalue_line("markers", "kernels_ci: mark a test as a kernel CI test")


@pytest.fixture(scope="session")
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1")
