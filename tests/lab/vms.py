"""A daemon in the lab, and the smallest VM."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from attrs import define, field

from tests.lab.warm import WarmPrograms
from tests.qemu.daemon import Daemon, Process, end

PATIENCE = 300.0
"""Seconds: a QEMU in the lab takes ten to start, and some start at once."""

TINY = "memory: 32\naccel: tcg\nnetworks: []\nstop: {timeout: 100ms}\n"


@define
class LabDaemon(Daemon):
    """A daemon that needs no time for its imports; ``program`` is (python, -m, module)."""

    warm: WarmPrograms = field(kw_only=True)

    def open_process(self, arguments: Sequence[str], output: IO[bytes]) -> Process:
        """Fork the program from the one that has imported it."""
        environment = {**os.environ, **self.environment}
        return self.warm.start(self.program[-1], arguments, environment, output, output)

    def arcsup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a verb of the command line as a process of its own."""
        words = ["--run", str(self.run), *arguments]
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = self.warm.start("arcsup", words, os.environ, output, errors)
            status = process.wait(self.patience)
            texts = [os.pread(file.fileno(), 1 << 20, 0).decode() for file in (output, errors)]
        return subprocess.CompletedProcess(words, status, *texts)


@contextmanager
def lab_daemon(daemon_log: Path, warm: WarmPrograms) -> Iterator[Daemon]:
    """Yield a daemon that answers; in the end every VM of it goes and gives back its devices.

    ``config.yaml`` in its ``top`` is its configuration, which starts out empty.
    """
    with tempfile.TemporaryDirectory(prefix="arc", dir="/tmp") as top:
        config = Path(top) / "config.yaml"
        config.write_text("{}\n")
        daemon = LabDaemon(Path(top), ("--config", str(config)), patience=PATIENCE, warm=warm)
        daemon.start()
        try:
            yield daemon
        finally:
            for file in daemon.vms.glob("*.yaml"):
                file.unlink()
            try:
                daemon.until(lambda: not daemon.client.get("/v1/vms"), "every VM is gone")
            finally:
                with open(daemon_log, "a") as log:
                    log.write(daemon.read_log())
                end(daemon)


def wait_until_it_waits(daemon: Daemon, name: str, what: str) -> None:
    """Wait until a VM tells that it waits for something; before, it is about to start."""

    def waits() -> bool:
        return daemon.state_of(name) == "waiting" and what in daemon.status(name)["reason"]

    daemon.until(waits, f"{name} waits: {what}")
