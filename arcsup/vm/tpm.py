"""A software TPM 2.0 (swtpm) that lives as long as its QEMU; its state outlives both.

Source: swtpm(8), and QEMU's docs/specs/tpm.rst.
"""

import shutil
from pathlib import Path

from attrs import frozen

from arcsup.errors import Terminal
from arcsup.model import Argv, VmName
from arcsup.vm.options import escape
from arcsup.vm.sockets import Listener

TPM_LOG = "tpm.log"
"""What swtpm says, in the VM's folder of logs."""

INSTALL_HINT = "install the package swtpm"


@frozen
class HelperCommand:
    """A program that must run beside a QEMU. ``pass_fds`` are to be inherited as they are.

    ``keeps_user`` is one that goes on as the daemon's user where QEMU does not. ``log`` is the
    file that its words go to, None for QEMU's.
    """

    role: str
    argv: Argv
    pass_fds: tuple[int, ...] = ()
    keeps_user: bool = False
    log: Path | None = None


def find_swtpm() -> Path:
    """Return the TPM emulator. Raises Terminal when there is none."""
    found = shutil.which("swtpm")
    if found is None:
        raise Terminal("tpm: no swtpm is installed", hint=INSTALL_HINT)
    return Path(found)


def tpm_folder(state: Path, name: VmName) -> Path:
    """Return where a VM's TPM keeps its keys."""
    return state / "tpm" / name


def create_tpm_folder(folder: Path) -> None:
    """Make the folder (0700) where it is missing. Raises Terminal."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Terminal(
            f"{folder}: cannot keep the TPM's state: {error.strerror}",
            hint="check the owner and the space of the state directory",
        ) from error


def tpm_helper(swtpm: Path, folder: Path, listener: Listener, log: Path) -> HelperCommand:
    """Return the emulator for one VM; it ends when QEMU closes the connection.

    What it says goes to ``log``.

    Raises:
        Terminal: a path has a comma, which swtpm's options cannot express.
    """
    for path in (folder, listener.path):
        if "," in str(path):
            raise Terminal(f"{path}: swtpm cannot use a path with a comma", hint="move it")
    control = f"path={listener.path}" if listener.fd is None else f"fd={listener.fd}"
    argv = (
        str(swtpm), "socket", "--tpm2", "--terminate",
        "--tpmstate", f"dir={folder},mode=0600",
        "--ctrl", f"type=unixio,{control}",
        # To its standard error: the file is the daemon's to open.
        "--log", "level=1",
    )  # fmt: skip
    return HelperCommand("tpm", argv, () if listener.fd is None else (listener.fd,), log=log)


def tpm_args(listener: Listener | None) -> Argv:
    """Return the TPM as the guest sees it: a CRB device, which Windows 11 asks for."""
    if listener is None:
        return ()
    return (
        "-chardev", f"socket,id=tpm,path={escape(listener.path)}",
        "-tpmdev", "emulator,id=tpm-emulator,chardev=tpm",
        "-device", "tpm-crb,id=tpm0,tpmdev=tpm-emulator",
    )  # fmt: skip
