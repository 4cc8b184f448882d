"""The verb create: a VM's disk, and the installer that fills it."""

from pathlib import Path
from typing import Unpack

import click

from arcsup.cli.operate import no_wait_option, operate, read_vm_file, timeout_option
from arcsup.cli.session import Session
from arcsup.cli.start import wait_query
from arcsup.cli.unattended import (
    UnattendedOptions,
    check_no_wishes,
    read_wishes,
    unattended_options,
)
from arcsup.control.shapes import InstallJson, StatusJson, ViewingJson
from arcsup.errors import ExitCode, NoSuchObject, NotPermitted, UsageError


def take_size(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """Return a disk's size in MiB: a bare number is GiB, as arcd has it; or 512MiB, 64GiB, 1TiB."""
    from arcsup.spec.units import parse_size

    text = value.strip()
    try:
        return int(parse_size(f"{text}GiB" if text.isascii() and text.isdigit() else text))
    except ValueError:
        raise click.BadParameter(
            f"expected a number of GiB such as 64, or a size such as 1TiB, got {value[:40]!r}"
        ) from None


def take_image(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> Path | None:
    """Return the absolute path of an image that can be read. Raises NoSuchObject, NotPermitted."""
    if value is None:
        return None
    try:
        with value.open("rb") as stream:
            stream.read(1)
    except FileNotFoundError:
        raise NoSuchObject(f"there is no image {value}") from None
    except PermissionError:
        raise NotPermitted(f"{value}: you may not read it") from None
    except OSError as error:
        raise UsageError(f"{value}: {error.strerror}") from None
    return value.absolute()


@click.command()
@click.argument("file", type=click.Path(path_type=Path, readable=False), metavar="FILE")
@click.argument(
    "iso", type=click.Path(path_type=Path, readable=False), metavar="ISO", callback=take_image
)
@click.argument("size", metavar="SIZE_GB", callback=take_size)
@click.option(
    "--drivers",
    type=click.Path(path_type=Path, readable=False),
    metavar="ISO",
    callback=take_image,
    help="A further ISO in a drive, such as virtio-win.iso.",
)
@unattended_options
@no_wait_option
@timeout_option
@click.pass_obj
def create(
    session: Session,
    file: Path,
    iso: Path,
    size: int,
    drivers: Path | None,
    no_wait: bool,
    timeout: float,
    **options: Unpack[UnattendedOptions],
) -> int:
    """Make a VM's disk and start its installer.

    The first disk of FILE, a VM file of arcsup or LibVF.IO, is made with SIZE_GB GiB; one that is
    there already is never overwritten. ISO is booted with a plain screen on VNC, without GPU,
    shared memory or SPICE, and how to see it is printed.

    With --unattended the installer asks nothing: it finds an answer file on a medium of its own,
    or, of Debian, in its initrd, and powers off at the end. For cloud-init, ISO is a cloud image,
    over which the disk is laid. The password comes from a file or a prompt; what holds it is
    readable by the daemon alone and removed after the installation.

    When the installer powers off the VM is stopped, and stays listed until it is started from its
    file or the host restarts. `arcsup start FILE --preinstall` comes next: GPU and guest tools.

    \b
    Example:
      arcsup create windows.yaml windows-11.iso 64
      arcsup create ./windows.yaml windows-11.iso 64 --drivers virtio-win.iso
      arcsup create web.yaml debian-12-netinst.iso 20 --unattended debian --user web
      arcsup create web.yaml debian-12-genericcloud.qcow2 20 --unattended cloud-init
    """
    wait = None if no_wait else timeout
    source = read_vm_file(file)
    body = {
        "file": str(file.absolute()),
        "source": source,
        "install": _install(file, source, iso, drivers, size, options),
    }
    screens: list[str] = []

    def act(_file: str) -> StatusJson:
        vm: StatusJson = session.client.post("/v1/vms", body, wait_query(wait), patience=wait or 0)
        screens.append(describe_screen(vm["name"], vm["viewing"]))
        return vm

    code = operate(session, [str(file.absolute())], act)
    if code == ExitCode.OK and screens[0]:
        print(screens[0])
    return code


def _install(
    file: Path,
    source: str,
    iso: Path,
    drivers: Path | None,
    size: int,
    options: UnattendedOptions,
) -> InstallJson:
    media = [str(image) for image in (iso, drivers) if image is not None]
    kind = options["unattended"]
    if kind is None:
        check_no_wishes(options)
        return {"media": media, "sizeMiB": size}
    # Needs the libraries that read VM files and write answers.
    from arcsup.cli.answers import write_answers

    answers = write_answers(
        kind, source, file.absolute(), read_wishes(options), drivers=drivers is not None
    )
    if kind == "cloud-init":
        # Its image is no installer: the disk begins as that.
        return {"media": media[1:], "sizeMiB": size, "base": str(iso), "answers": answers}
    return {"media": media, "sizeMiB": size, "answers": answers}


def describe_screen(name: str, viewing: ViewingJson | None) -> str:
    """Return where a VM's screen is and what shows it; "" while it has none."""
    if viewing is None or viewing["display"] not in {"vnc", "gtk"}:
        return ""
    if viewing["display"] == "gtk":
        return "its screen is a window of the daemon's session"
    place = viewing["socket"] or f"{viewing['address']}:{viewing['port']}"
    return f"its screen is VNC on {place}: arcsup view {name}"
