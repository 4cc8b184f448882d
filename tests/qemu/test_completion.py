"""Completion in a real bash on a terminal, asked of a real daemon."""

import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

from tests.qemu.daemon import Daemon, running_daemon

QUIET_VM = "autostart: false\nmemory: 64\nnetworks: []\n"

PATIENCE = 30.0


class Bash:
    """An interactive bash on a terminal of its own, with arcsup on PATH and its completion."""

    def __init__(self, run: Path) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            folder = Path(sys.executable).parent
            path = f"{folder}:{os.environ['PATH']}"
            os.execvpe(
                "bash",
                ["bash", "--norc", "--noprofile", "-i"],
                {"PATH": path, "ARCSUP_RUN": str(run), "TERM": "dumb", "PS1": "ready> "},
            )
        self.shown = ""

    def type(self, keys: str, until: str) -> str:
        """Type keys, wait until what is shown since matches ``until``, and return it."""
        self.shown = ""
        os.write(self.terminal, keys.encode())
        deadline = time.monotonic() + PATIENCE
        while not re.search(until, self.shown):
            left = deadline - time.monotonic()
            assert left > 0, f"not shown: {until!r}, but {self.shown!r}"
            if select.select([self.terminal], [], [], left)[0]:
                self.shown += os.read(self.terminal, 4096).decode()
        return self.shown

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


def add_vms(daemon: Daemon, *names: str) -> None:
    for name in names:
        (daemon.vms / f"{name}.yaml").write_text(QUIET_VM)
    known = {*names}
    daemon.until(
        lambda: {vm["name"] for vm in daemon.client.get("/v1/vms")} == known, "it knows the VMs"
    )


def test_bash_completes_verbs_options_and_the_names_of_vms(short_dir: Path) -> None:
    with running_daemon(short_dir) as daemon:
        add_vms(daemon, "web-server", "database")
        bash = Bash(daemon.run)
        try:
            bash.type("", "ready> ")
            bash.type('eval "$(arcsup completion bash)"; echo lo""aded\n', "loaded\r\nready> ")

            bash.type("arcsup stop we\t", "stop web-server ")
            bash.type("da\t", "database ")
            bash.type("\x15arcsup screensh\t", "screenshot ")
            bash.type("\x15arcsup list -o wid\t", "wide ")
            both = bash.type("\x15arcsup status \t\t", r"(?s)status \x07?.*web-server")
        finally:
            bash.end()

    assert "database" in both
