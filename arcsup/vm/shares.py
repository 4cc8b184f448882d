"""Folders of the host in the guest: virtiofs where a virtiofsd can run, else 9p.

Sources: virtiofsd's README (the Rust one), docs/tools/virtiofsd.rst of QEMU 7.2 (the C one),
and QEMU's own -help for 9p.
"""

import os
import stat
from pathlib import Path
from typing import Literal

from attrs import frozen

from arcsup.errors import ArcsupError, Terminal
from arcsup.model import Argv, Share
from arcsup.vm.capabilities import Capabilities
from arcsup.vm.options import Slot, escape, on_off, pci_place
from arcsup.vm.programs import run_program
from arcsup.vm.sockets import Listener
from arcsup.vm.tpm import HelperCommand

VIRTIOFSD_BINARIES = (
    Path("/usr/libexec/virtiofsd"),
    Path("/usr/lib/virtiofsd"),
    Path("/usr/lib/qemu/virtiofsd"),
)


GIVEN_UP = "-mknod:-setfcap"
"""What the server of root's is not to do for a guest: make device nodes, which open the host's
devices wherever the file system allows some, and give programs capabilities of the host."""


@frozen
class Virtiofsd:
    """A virtiofsd that can run here.

    ``readonly`` tells whether it can refuse the guest's writes, ``modcaps`` whether it can be told
    to give up capabilities. ``own_ids`` is None for root; anybody else serves with their own user
    and group, which the guest sees as root.
    """

    binary: Path
    flavour: Literal["rust", "c"]
    readonly: bool
    own_ids: tuple[int, int] | None = None
    modcaps: bool = False

    def serves(self, share: Share) -> bool:
        """Whether it can serve that share as asked for."""
        return self.readonly or not share.readonly


async def find_virtiofsd(
    binaries: tuple[Path, ...] = VIRTIOFSD_BINARIES, *, root: bool
) -> Virtiofsd | None:
    """Return a virtiofsd that can run as this user; None means 9p, which needs nothing.

    The C one refuses to run for anybody but root (measured: "unshare: Operation not permitted");
    the Rust one then needs user namespaces, which some hosts forbid.
    """
    for binary in binaries:
        if not os.access(binary, os.X_OK):
            continue
        try:
            finished = await run_program((str(binary), "--help"), seconds=5)
        except ArcsupError:
            continue
        usage = finished.stdout + finished.stderr
        if finished.returncode != 0 or b"--fd" not in usage:
            continue
        flavour: Literal["rust", "c"] = "rust" if b"--shared-dir" in usage else "c"
        readonly = b"--readonly" in usage
        if root:
            return Virtiofsd(binary, flavour, readonly, modcaps=b"modcaps=" in usage)
        if b"--uid-map" in usage and await _can_make_namespaces():
            return Virtiofsd(binary, flavour, readonly, (os.geteuid(), os.getegid()))
    return None


async def _can_make_namespaces() -> bool:
    """Whether this user may do what the sandbox does: mount in a user namespace of their own."""
    argv = ("unshare", "--user", "--map-root-user", "--mount", "true")
    try:
        return (await run_program(argv, seconds=5)).returncode == 0
    except ArcsupError:
        return False


def virtiofs_helper(
    virtiofsd: Virtiofsd, share: Share, source: Path, listener: Listener, index: int
) -> HelperCommand:
    """Return the server of one share; it ends when QEMU closes the connection.

    It keeps the daemon's user: a guest's files belong to many, and it has a sandbox of its own
    (a mount namespace that ends at the folder, few capabilities, seccomp; virtiofsd's README).
    """
    place = f"--socket-path={listener.path}" if listener.fd is None else f"--fd={listener.fd}"
    binary = str(virtiofsd.binary)
    if virtiofsd.flavour == "rust":
        more = ["--readonly"] if share.readonly else []
        if virtiofsd.own_ids is not None:
            uid, gid = virtiofsd.own_ids
            more += [f"--uid-map=:0:{uid}:1:", f"--gid-map=:0:{gid}:1:"]
        elif virtiofsd.modcaps:
            more += [f"--modcaps={GIVEN_UP}"]
        argv: Argv = (binary, place, f"--shared-dir={source}", "--log-level=warn", *more)
    else:
        # libfuse's option parser: a backslash keeps a comma inside a value.
        folder = str(source).replace("\\", "\\\\").replace(",", "\\,")
        argv = (binary, place, "-f", "-o", f"source={folder}", "-o", "log_level=warn")
        argv += ("-o", f"modcaps={GIVEN_UP}") if virtiofsd.modcaps else ()
    pass_fds = () if listener.fd is None else (listener.fd,)
    return HelperCommand(f"virtiofs{index}", argv, pass_fds, keeps_user=True)


def share_args(
    shares: tuple[Share, ...],
    listeners: tuple[Listener | None, ...],
    capabilities: Capabilities,
    images: Path,
    *,
    root: bool,
) -> Argv:
    """Return the options of all shares; a listener means that a virtiofsd serves there."""
    argv: list[str] = []
    for index, (share, listener) in enumerate(zip(shares, listeners, strict=True)):
        place = pci_place(Slot.SHARES, index, slots=2, what="shares")
        name, tag = f"share{index}", escape(share.tag)
        if listener is not None:
            argv += [
                "-chardev", f"socket,id={name},path={escape(listener.path)}",
                "-device", f"vhost-user-fs-pci,id={name},chardev={name},tag={tag},{place}",
            ]  # fmt: skip
            continue
        capabilities.require_device("virtio-9p-pci", "install a virtiofsd, or a QEMU with 9p")
        # Who is not root cannot give files to others; "none" lets those calls fail quietly.
        model = "passthrough" if root else "none"
        how = f"security_model={model},multidevs=remap,readonly={on_off(share.readonly)}"
        argv += [
            "-fsdev", f"local,id={name},path={escape(images / share.path)},{how}",
            "-device", f"virtio-9p-pci,id={name},fsdev={name},mount_tag={tag},{place}",
        ]  # fmt: skip
    return tuple(argv)


def check_share(share: Share, images: Path) -> Path:
    """Return the folder of a share. Raises Terminal when it is not there."""
    source = images / share.path
    if not source.is_dir():
        raise Terminal(f"shares: {source} is no folder", hint="make it, or correct the path")
    return source


def find_reach(source: Path, opened: frozenset[Path]) -> str:
    """Say why local users could run what a guest left in a folder; "" when only root could.

    A guest's root makes files of the host's root there, with any mode: set-user-ID programs too.
    Nobody runs these where one folder on the way lets in root alone, or where the file system is
    mounted nosuid (mount(8)). ``opened`` are folders that the daemon itself lets others pass.
    Raises Terminal for what cannot be looked at.
    """
    try:
        if os.statvfs(source).f_flag & os.ST_NOSUID:
            return ""
        for folder in {source, *source.parents} - opened:
            if _lets_in_root_alone(folder.stat()):
                return ""
    except OSError as error:
        raise Terminal(f"shares: {source}: {error.strerror}", "correct the path") from error
    return f"others than root can pass {source}, where the guest can leave set-user-ID programs"


def _lets_in_root_alone(status: os.stat_result) -> bool:
    by_group = status.st_mode & stat.S_IXGRP and status.st_gid != 0
    return status.st_uid == 0 and not by_group and not status.st_mode & stat.S_IXOTH
