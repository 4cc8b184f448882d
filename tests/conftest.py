"""Fixtures for all tests."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

with suppress(ModuleNotFoundError):  # The lab goes without hypothesis: its import takes 16 s there.
    import hypothesis

    # A busy machine is no finding. CI tries the same examples each time: what is new is found by
    # people who can look into it.
    hypothesis.settings.register_profile("people", deadline=None)
    hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("ci" if "CI" in os.environ else "people")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job has it so, and hands it down to what the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """Yield a directory of the test whose path leaves room for sockets.

    pytest's tmp_path is too deep: a unix socket's path has at most 107 bytes.
    """
    directory = Path(tempfile.mkdtemp(prefix="arc", dir="/tmp"))
    # QEMU's user must be able to pass.
    directory.chmod(0o711)
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
