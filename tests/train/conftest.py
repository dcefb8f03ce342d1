"""Small tensors are slower in several threads, much slower where others work on the machine too."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: make test-train")
    torch.set_num_threads(1)
