"""The guide in examples/README.md, every command of it in its order, on a host without a GPU.

What is not the guide's: the VM asks for no GPU, no UEFI and little memory, its "installer" is a CD
that nothing boots from, and clients are printed instead of started.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import TOP
from tests.qemu.daemon import Daemon, running_daemon

GUIDE = TOP / "examples" / "README.md"

CHANGES_THE_HOST = ("sudo arcsup setup --apply", "sudo reboot")

SMALLER = {
    r"(?m)^memory: .*": "memory: 64MiB",
    r"(?m)^firmware: .*": "firmware: bios",
    r"(?m)^tpm: .*": "tpm: false",
    r"(?ms)^gpus:.*?(?=^[a-z])": "",
    r"timeout: 3m": "timeout: 100ms",
}


def read_commands() -> list[str]:
    """Return the guide's commands in their order."""
    blocks = re.findall(r"```console\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ") for line in lines]


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


class Reader:
    """A person with a shell who does what the guide says."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.home = daemon.top / "home"
        (self.home / "downloads").mkdir(parents=True)
        (self.home / "examples").symlink_to(TOP / "examples")
        for name in ("windows-11.iso", "virtio-win.iso"):
            (self.home / name).write_bytes(bytes(4096))
        program = daemon.top / "bin" / "arcsup"
        program.parent.mkdir()
        command = shlex.join([sys.executable, "-m", "arcsup", "--run", str(daemon.run)])
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)
        self.path = f"{program.parent}:{os.environ['PATH']}"

    def do(self, command: str) -> None:
        """Run one command and hold it to what the guide promises."""
        if " view " in command:
            command += " --print"
        result = subprocess.run(
            command,
            shell=True,
            cwd=self.home,
            env={**os.environ, "PATH": self.path, "PYTHONPATH": str(TOP)},
            capture_output=True,
            text=True,
            check=False,
            timeout=self.daemon.patience * 5,
        )
        said = f"{command}: {result.returncode}\n{result.stdout}{result.stderr}"
        if command == "arcsup doctor":
            # What it finds is this machine's own affair.
            assert result.returncode in (0, 1), said
        elif " view " in command and result.returncode:
            assert "install" in result.stderr, said
        else:
            assert result.returncode == 0, said
        if command.startswith("cp "):
            self.make_smaller(self.home / command.split()[-1])

    def make_smaller(self, file: Path) -> None:
        text = file.read_text()
        for pattern, replacement in SMALLER.items():
            text, count = re.subn(pattern, replacement, text)
            assert count == 1, pattern
        file.write_text(text)


def test_every_command_of_the_guide_does_what_it_says(daemon: Daemon) -> None:
    reader = Reader(daemon)
    commands = read_commands()
    assert set(CHANGES_THE_HOST) <= set(commands)

    for command in commands:
        if command not in CHANGES_THE_HOST:
            reader.do(command)

    images = daemon.state / "images"
    assert {path.name for path in images.glob("[!.]*")} == {
        "experiment.qcow2",
        "guest-tools.iso",
        "windows-2.qcow2",
        "windows-nvidia-vgpu.qcow2",
    }
    assert (daemon.vms / "windows.yaml").is_file()
    assert daemon.state_of("windows") == "stopped"


def test_every_example_is_in_the_guide() -> None:
    named = set(re.findall(r"\]\(([a-z0-9-]+\.yaml)\)", GUIDE.read_text()))

    assert named == {path.name for path in (TOP / "examples").glob("*.yaml")}
