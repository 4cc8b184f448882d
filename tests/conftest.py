"""Fixtures for all tests."""

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """Yield a directory of the test whose path leaves room for sockets.

    pytest's tmp_path is too deep: a unix socket's path has at most 107 bytes.
    """
    directory = Path(tempfile.mkdtemp(prefix="arc", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return a function that finds a TCP port of the loopback that nobody uses just now."""

    def find_free_port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return find_free_port
