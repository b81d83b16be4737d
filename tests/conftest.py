"""Every test is seeded, stays off the network and takes its device from GRADPROM_TEST_DEVICE."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator

os.environ.setdefault("MPLBACKEND", "Agg")  # read when matplotlib is first imported

import numpy as np
import pytest
import torch
from hypothesis import settings

# Fixed examples and no deadline: a shared machine must not decide whether a property holds.
settings.register_profile("gradprom", derandomize=True, deadline=None, database=None)
settings.load_profile("gradprom")

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where no CUDA device is at hand."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test: the environment variable GRADPROM_TEST_DEVICE, else the CPU."""
    return torch.device(os.environ.get("GRADPROM_TEST_DEVICE", "cpu"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Refuse connections that leave this machine; process groups need the loopback address."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: tuple[str, int] | str) -> None:
        if not isinstance(address, str) and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise RuntimeError(f"a test tried to reach {address[0]}: tests run offline")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield
