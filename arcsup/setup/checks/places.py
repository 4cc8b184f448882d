"""The places and what is in them: owners, space, VM files, the daemon."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from arcsup import __version__
from arcsup.control.client import Client
from arcsup.errors import ArcsupError, DaemonUnreachable, SpecError
from arcsup.model import NetworkType, Vm
from arcsup.setup.findings import Check, Finding, error, info, ok, warning
from arcsup.setup.host import Host
from arcsup.spec.config import load_config
from arcsup.spec.directory import Circumstances, DirectoryState, Snapshot, read_directory
from arcsup.vm.networks import BRIDGE_RULES

LITTLE_SPACE = 5 * 1024**3
NO_SPACE = 512 * 1024**2
"""Bytes free for images: below the first few new disks fit, below the second guests see errors."""

BRIDGE_HELPERS = (Path("/usr/lib/qemu/qemu-bridge-helper"), Path("/usr/libexec/qemu-bridge-helper"))


def check_places(host: Host) -> Iterator[Finding]:
    """Tell of each directory whether it is there, and who could tamper with it."""
    places = host.places
    made_by_daemon = {places.run}
    for path in (places.vms, places.state, places.images, places.log, places.run):
        try:
            status = path.stat()
        except FileNotFoundError:
            if path in made_by_daemon:
                yield info(f"{path} is not there", "the daemon makes it when it starts")
            else:
                do = f"run `arcsup setup`, or: mkdir -p {path}"
                yield warning(f"{path} is not there", "the daemon keeps its files there", do)
            continue
        except OSError as fault:
            do = "run doctor as the user of the daemon"
            yield warning(f"{path} cannot be looked at: {fault.strerror}", "so nor can I", do)
            continue
        yield from _check_directory(host, path, status)


def _check_directory(host: Host, path: Path, status: os.stat_result) -> Iterator[Finding]:
    tampering = "whoever can change it can have things done as the daemon's user"
    if not stat.S_ISDIR(status.st_mode):
        yield error(f"{path} is no directory", "the daemon keeps its files there", f"mv {path} …")
    elif status.st_uid != host.uid:
        what = f"{path} belongs to user {status.st_uid}, expected {host.uid}"
        yield error(what, tampering, f"as root: chown {host.uid} {path}")
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        what = f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
        yield error(what, tampering, f"chmod go-w {path}")
    else:
        yield ok(f"{path} (mode {stat.S_IMODE(status.st_mode):o})")


def check_space(host: Host) -> Iterator[Finding]:
    """Tell how much room images have to grow."""
    place = host.places.images
    while not place.exists():
        place = place.parent
    system = os.statvfs(place)
    free = system.f_bavail * system.f_frsize
    what = f"{free / 1024**3:.1f} GiB free for images ({place})"
    do = f"make room, or set stateDir in {host.places.config}"
    if free < NO_SPACE:
        yield error(what, "guests stop or see disk errors when an image cannot grow", do)
    elif free < LITTLE_SPACE:
        yield warning(what, "images grow as guests write", do)
    else:
        yield ok(what)


def check_configuration(host: Host) -> Iterator[Finding]:
    """Tell whether the daemon could read its configuration."""
    file = host.places.config
    try:
        load_config(file)
    except SpecError as fault:
        yield error(fault.message, "the daemon does not start with it", f"correct {file}")
        return
    yield ok(f"{file}" if file.exists() else f"no {file}: everything has its default")


def _read_vms(host: Host) -> Snapshot:
    places = host.places
    given = Circumstances(
        machine_id="", images=places.images, system=places.system and host.uid == 0
    )
    # Long after anything was written: a file in the writing is the daemon's business.
    return read_directory(places.vms, None, given, now=float("inf"))


def _vms(host: Host) -> Iterator[tuple[Path, Vm]]:
    for entry in _read_vms(host).entries.values():
        if entry.vm is not None:
            yield entry.file, entry.vm


def check_vm_files(host: Host) -> Iterator[Finding]:
    """Tell the faults of VM files, as ``arcsup check`` does."""
    snapshot = _read_vms(host)
    if snapshot.directory is not DirectoryState.PRESENT:
        yield info(snapshot.reason, "VM files belong there")
        return
    entries = snapshot.entries.values()
    for fault in (*snapshot.findings, *(fault for entry in entries for fault in entry.faults)):
        yield error(str(fault), "this VM does not run as its file says", "correct the file")
    for text in (text for entry in entries for text in entry.warnings):
        yield warning(text, "the daemon takes it all the same", "correct the file")
    for file in snapshot.unsettled:
        what, do = f"{file}: is being written", "look again; fuser(1) tells who has it open"
        yield warning(what, "it is not read before it is left alone", do)
    good = sum(entry.vm is not None for entry in entries)
    yield ok("one VM file without faults" if good == 1 else f"{good} VM files without faults")


def check_escape_hatch(host: Host) -> Iterator[Finding]:
    """List the VMs whose QEMU is not all arcsup's choice."""
    found = False
    why = "arcsup does not look at these: they can undo what keeps the host safe"
    for file, vm in _vms(host):
        if vm.qemu.args:
            found = True
            do = f"look at them: arcsup qemu {vm.name}"
            yield info(f"{file}: qemu.args: {' '.join(vm.qemu.args)}", why, do)
        if vm.qemu.binary is not None:
            found = True
            yield info(f"{file}: qemu.binary: {vm.qemu.binary}", why)
    if not found:
        yield ok("no VM file uses the escape hatch (qemu.args, qemu.binary)")


def check_bridges(host: Host) -> Iterator[Finding]:
    """Tell whether VMs may join the bridges that their files name."""
    wanted = sorted(
        {
            network.bridge
            for _, vm in _vms(host)
            for network in vm.networks
            if network.type is NetworkType.BRIDGE
        }
    )
    if not wanted:
        yield ok("no VM file asks for a bridge")
        return
    allowed = set(_read_rules(host))
    for bridge in wanted:
        why = "QEMU's bridge helper refuses what no rule allows"
        if allowed & {bridge, "all"}:
            yield ok(f"VMs may join bridge {bridge}")
        else:
            do = f'as root, write "allow {bridge}" into {BRIDGE_RULES[0]}'
            yield error(f"VMs may not join bridge {bridge}", why, do)
    yield from _check_bridge_helper(host)


def _read_rules(host: Host) -> Iterator[str]:
    """Yield the bridges that qemu-bridge-helper allows."""
    for file in BRIDGE_RULES:
        for line in host.read(file).splitlines():
            verb, _, bridge = line.strip().partition(" ")
            if verb == "allow":
                yield bridge.strip()


def _check_bridge_helper(host: Host) -> Iterator[Finding]:
    """Tell whether users other than root can be helped onto a bridge."""
    helper = next((path for path in host.paths(BRIDGE_HELPERS) if path.exists()), None)
    why = "QEMU joins bridges through it"
    if helper is None:
        yield error("there is no qemu-bridge-helper", why, "install qemu-system-common")
    elif host.uid != 0 and not helper.stat().st_mode & stat.S_ISUID:
        do = f"as root: chmod u+s {host.tell(helper)}"
        yield error(f"{host.tell(helper)} has no set-user-id bit", why, do)


def check_daemon(host: Host) -> Iterator[Finding]:
    """Tell whether the daemon answers, and what it has to say itself."""
    socket = host.places.socket
    try:
        report = Client(socket).get("/v1/daemon")
    except DaemonUnreachable as fault:
        yield warning(fault.message, "nothing supervises VMs without it", fault.hint)
        return
    except ArcsupError as fault:
        yield warning(fault.message, "nothing is known of the daemon", fault.hint)
        return
    version = str(report["version"])
    if version == __version__:
        yield ok(f"the daemon answers (arcsup {version}, pid {report['pid']})")
    else:
        what = f"the daemon is arcsup {version}, this program is {__version__}"
        do = "systemctl restart arcsup (VMs run on)"
        yield warning(what, "verbs and daemon may not understand each other", do)
    for text in report["findings"]:
        yield warning(str(text), "the daemon reports it", "see `arcsup events`")


CHECKS = (
    Check("places", "Directories", check_places),
    Check("space", "Space for images", check_space),
    Check("configuration", "The configuration", check_configuration),
    Check("vm-files", "VM files", check_vm_files),
    Check("escape-hatch", "The escape hatch", check_escape_hatch),
    Check("bridges", "Bridges", check_bridges),
    Check("daemon", "The daemon", check_daemon),
)
