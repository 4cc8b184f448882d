"""Arcsup's programs without their imports, which take ten seconds and more under TCG.

``python -m tests.lab.warm FD`` imports the daemon once and then forks for every program that it is
asked for on its socket. Such a program is what ``python -m MODULE`` makes, but for its command
line in /proc.
"""

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, NoReturn, Self

import attrs

# Imported for the forks that use it.
import arcsup.cli.daemon
import arcsup.cli.main
import arcsup.daemon  # noqa: F401

REQUEST_BYTES = 1 << 16


@attrs.define
class WarmProcess:
    """A program that was forked; what tests need of subprocess.Popen."""

    pid: int
    _answers: socket.socket
    returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, None while it runs; minus the signal's number if killed."""
        return self._look(0)

    def wait(self, timeout: float) -> int:
        """Wait for the end; raise TimeoutExpired after so many seconds."""
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _look(self, seconds: float) -> int | None:
        if self.returncode is None and select.select([self._answers], [], [], seconds)[0]:
            self.returncode = int(self._answers.recv(REQUEST_BYTES))
            self._answers.close()
        return self.returncode


class WarmPrograms:
    """The process that forks, and the way to ask it."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.lab.warm", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: IO[bytes],
        errors: IO[bytes],
    ) -> WarmProcess:
        """Run a module with this environment; what it prints goes to these files."""
        request = {"module": module, "arguments": arguments, "environment": dict(environment)}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptors = [theirs.fileno(), output.fileno(), errors.fileno()]
            socket.send_fds(self._requests, [json.dumps(request).encode()], descriptors)
        return WarmProcess(int(ours.recv(REQUEST_BYTES)), ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        """End the process that forks; what it forked goes on."""
        self._requests.close()
        assert self._process.wait(60) == 0


def serve(requests: socket.socket) -> None:
    """Fork for each request until there is nobody who could ask."""
    # Those who wait for the programs need nobody to wait for them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 3)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            answers, *outputs = descriptors
            run(**json.loads(request), answers=answers, outputs=outputs)
        for descriptor in descriptors:
            os.close(descriptor)


def run(
    module: str,
    arguments: list[str],
    environment: dict[str, str],
    answers: int,
    outputs: list[int],
) -> NoReturn:
    """Fork again, for the program; tell its pid and, in time, its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(fileno=answers) as client:
        pid = os.fork()
        if pid != 0:
            client.send(str(pid).encode())
            _, status = os.waitpid(pid, 0)
            client.send(str(os.waitstatus_to_exitcode(status)).encode())
            sys.exit()
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, descriptor in enumerate(outputs, 1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
