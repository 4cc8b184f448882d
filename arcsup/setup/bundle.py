"""The support archive: what somebody needs to see who is to help, without secrets."""

import io
import json
import os
import platform
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from attrs import frozen

from arcsup import __version__
from arcsup.control.client import Client
from arcsup.control.gpus import view_inventory
from arcsup.errors import ArcsupError, Refused
from arcsup.host.inventory import observe_host
from arcsup.setup.actions import Command
from arcsup.setup.commands import ask_command
from arcsup.setup.host import Host, read_text
from arcsup.setup.redact import remove_secrets

TAIL = 256 * 1024
"""Bytes of each log, the last ones; what happened last week is seldom asked for."""

MOST_FILES = 2000
"""Files of one kind that are taken along; a directory with more is told, not copied."""

PATIENCE = 20.0
"""Seconds for a program that is asked for the logs of the system."""

ANSWERS = {
    "daemon.json": "/v1/daemon",
    "vms.json": "/v1/vms",
    "plan.json": "/v1/plan",
}
"""What the daemon is asked for."""

PROGRAMS = {
    "journal-arcsup.txt": ("journalctl", "--no-pager", "--lines=2000", "--unit=arcsup.service"),
    "kernel.txt": ("journalctl", "--no-pager", "--lines=4000", "--dmesg", "--boot"),
    "lspci.txt": ("lspci", "-nnk"),
    "dkms.txt": ("dkms", "status"),
    "nvidia-smi.txt": ("nvidia-smi", "-q"),
}
"""Programs of the host, of which not every host has each."""

HOST_FILES = (
    "/etc/os-release",
    "/proc/cmdline",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/driver/nvidia/version",
)


@frozen
class Entry:
    """One file of the archive."""

    name: str
    text: str


def write_bundle(host: Host, file: Path, findings: object) -> tuple[str, ...]:
    """Write a gzipped tar archive that only its owner can read; return the names in it.

    ``findings`` is what doctor has found, as JSON has it. Raises Refused where ``file`` exists.
    """
    folder = file.name.split(".")[0]
    names = []
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Refused(f"{file} is there already", "name another file") from None
    except OSError as error:
        raise ArcsupError(f"{file}: {error.strerror}", "name a file that can be written") from error
    with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for entry in (Entry("doctor.json", _to_json(findings)), *collect(host)):
            content = remove_secrets(entry.text).encode(errors="replace")
            member = tarfile.TarInfo(f"{folder}/{entry.name}")
            member.size, member.mtime, member.mode = len(content), int(time.time()), 0o600
            tar.addfile(member, io.BytesIO(content))
            names.append(entry.name)
    return tuple(names)


def collect(host: Host) -> Iterator[Entry]:
    """Yield everything that belongs into the archive, secrets included."""
    yield Entry("versions.txt", _tell_versions(host))
    yield Entry("inventory.json", _to_json(view_inventory(observe_host(host.sysfs))))
    for name in HOST_FILES:
        if text := host.read(name):
            yield Entry(f"host{name}", text)
    if host.is_this:
        yield from _ask_daemon(host)
        yield from _ask_programs(host)
    places = host.places
    yield from _read_files("config", places.config.parent, (places.config,), read_text)
    yield from _read_files("vms", places.vms, places.vms.glob("*.y*ml"), read_text)
    yield from _read_files("state", places.state, places.state.glob("*.json"), read_text)
    yield from _read_files("state", places.state, (places.state / "vms").glob("*.json"), read_text)
    yield from _read_files("log", places.log, places.log.rglob("*.log*"), read_tail)


def _tell_versions(host: Host) -> str:
    qemu = _ask_version(host, "qemu-system-x86_64")
    lines = [
        f"arcsup {__version__}",
        f"Python {sys.version.split()[0]}",
        f"kernel {host.release or platform.release()}",
        *([qemu] if qemu else []),
    ]
    return "".join(f"{line}\n" for line in lines)


def _ask_version(host: Host, program: str) -> str:
    """Return the first line of ``program --version``, "" where there is no such program."""
    if host.find_program(program) is None:
        return ""
    try:
        answer = ask_command(host, (program, "--version"), PATIENCE)
    except ArcsupError as error:
        return f"{program}: {error.message}"
    return (answer or "").partition("\n")[0]


def _ask_daemon(host: Host) -> Iterator[Entry]:
    client = Client(host.places.socket)
    for name, path in ANSWERS.items():
        yield Entry(f"daemon/{name}", _or_fault(partial(_ask_path, client, path)))
    yield Entry("daemon/events.jsonl", _or_fault(partial(_ask_events, client)))


def _ask_path(client: Client, path: str) -> str:
    return _to_json(client.get(path))


def _ask_events(client: Client) -> str:
    events = client.stream("/v1/events", {"follow": "0"})
    return "".join(json.dumps(event, ensure_ascii=False) + "\n" for _number, event in events)


def _ask_programs(host: Host) -> Iterator[Entry]:
    for name, argv in PROGRAMS.items():
        if host.find_program(argv[0]) is not None:
            yield Entry(f"host/{name}", _or_fault(partial(_ask_program, host, argv)))


def _ask_program(host: Host, argv: Command) -> str:
    return ask_command(host, argv, PATIENCE) or ""


def _or_fault(ask: Callable[[], str]) -> str:
    """Return an answer, or why there is none: that is worth seeing too."""
    try:
        return ask()
    except ArcsupError as error:
        return f"{error.message}\n"


def _read_files(
    name: str, folder: Path, files: Iterable[Path], read: Callable[[Path], str]
) -> Iterator[Entry]:
    # No symlinks: they may lead to what is nobody else's business.
    found = sorted(file for file in files if file.is_file() and not file.is_symlink())
    for file in found[:MOST_FILES]:
        yield Entry(f"{name}/{file.relative_to(folder)}", read(file))
    if len(found) > MOST_FILES:
        yield Entry(f"{name}/MORE.txt", f"{len(found) - MOST_FILES} more files were left out\n")


def read_tail(file: Path) -> str:
    """Return the end of a log, "" when it cannot be read."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - TAIL))
            return stream.read(TAIL).decode(errors="replace")
    except OSError:
        return ""


def _to_json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
