"""A daemon in the lab, and the smallest VM."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.qemu.daemon import Daemon, end

PATIENCE = 300.0
"""Seconds: a QEMU in the lab takes ten to start, and some start at once."""

TINY = "memory: 32\naccel: tcg\nnetworks: []\nstop: {timeout: 100ms}\n"


@contextmanager
def lab_daemon(daemon_log: Path) -> Iterator[Daemon]:
    """Yield a daemon that answers; in the end every VM of it goes and gives back its devices.

    ``config.yaml`` in its ``top`` is its configuration, which starts out empty.
    """
    with tempfile.TemporaryDirectory(prefix="arc", dir="/tmp") as top:
        config = Path(top) / "config.yaml"
        config.write_text("{}\n")
        daemon = Daemon(Path(top), ("--config", str(config)), patience=PATIENCE)
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
