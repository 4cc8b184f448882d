"""What systemd is told, on real sockets."""

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from arcsup.notify import notify, watchdog_interval


@pytest.mark.parametrize("abstract", [False, True])
def test_fields_go_out_in_one_message(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"{short_dir}/notify"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind("\0" + name if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        notify(READY=1, STATUS="2 of 3 VMs running")
        assert listener.recv(4096) == b"READY=1\nSTATUS=2 of 3 VMs running"


def test_nobody_is_told_when_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify(READY=1)


def test_a_listener_that_does_not_read_holds_nobody_up(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(f"{short_dir}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{short_dir}/notify")
        for _ in range(5000):
            notify(WATCHDOG=1)


def test_the_watchdog_is_fed_twice_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert watchdog_interval() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert watchdog_interval() is None
