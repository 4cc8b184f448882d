"""The verbs on images: list, create, clone, commit, snapshot, revert.

They work as the caller, with the caller's rights on the files. What a running VM has open is asked
of its QEMU through the daemon; everything else is qemu-img's work, under QEMU's own locks.
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click

from arcsup.cli.image_list import list_images, tabulate_images
from arcsup.cli.image_users import UP, Users, find_users
from arcsup.cli.output import output_options, print_data, print_table
from arcsup.cli.places import PlaceOptions, place_options
from arcsup.cli.progress import showing_progress
from arcsup.cli.session import Session
from arcsup.control.client import follow_work, vm_path
from arcsup.errors import ExitCode, NoSuchObject, NotPermitted, Refused, UsageError

if TYPE_CHECKING:
    from arcsup.model import MiB


@click.group(invoke_without_command=True)
@click.pass_context
def image(ctx: click.Context) -> None:
    """Make, copy and look at the images of disks.

    A relative path is relative to STATE/images, as in VM files. An image that a VM runs on is
    never changed under it, and none gets its name before it is finished.

    \b
    Example:
      arcsup image list
      arcsup image clone windows.qcow2 spare.qcow2
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(ExitCode.USAGE)


@image.command("list")
@place_options
@output_options
@click.pass_obj
def list_(session: Session, output: str, **options: Unpack[PlaceOptions]) -> int:
    """List images: sizes, format, base, and which VMs use them.

    They are those in STATE/images and those that VMs name elsewhere. SIZE is what an image takes
    on disk, VIRTUAL what a guest sees of it; in JSON both are bytes.

    \b
    Example:
      arcsup image list -o wide
    """
    images = list_images(find_users(session, **options))
    if print_data(output, images, [it["path"] for it in images]):
        return ExitCode.OK
    if images:
        headers, rows = tabulate_images(images, wide=output == "wide")
        print_table(headers, rows)
    else:
        print("no images", file=sys.stderr)
    return ExitCode.OK


@image.command()
@click.argument("path", metavar="IMAGE")
@click.argument("size", metavar="[SIZE]", required=False)
@click.option("--base", metavar="IMAGE", help="Make an overlay of this image.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["qcow2", "raw"]),
    default="qcow2",
    show_default=True,
    help="The format.",
)
@place_options
@click.pass_obj
def create(
    session: Session,
    path: str,
    size: str | None,
    base: str | None,
    form: str,
    **options: Unpack[PlaceOptions],
) -> int:
    """Make an empty image, or an overlay of another.

    SIZE has a unit: 512MiB, 40GiB, 1TiB. An overlay may be larger than its base, and is as large
    without SIZE.

    \b
    Example:
      arcsup image create data.qcow2 100GiB
      arcsup image create test.qcow2 --base windows.qcow2
    """
    from arcsup.model import Disk, DiskFormat
    from arcsup.vm.disks import create_disk

    if size is None and base is None:
        raise UsageError("how large? say a SIZE", "arcsup image create data.qcow2 100GiB")
    users = find_users(session, **options)
    target = users.resolve(path)
    if base is not None:
        _find(users, base)
    disk = Disk(
        str(target), None if size is None else _take_size(size), DiskFormat(form), base=base
    )
    _refuse_existing(target)
    if not _work(create_disk, disk, users.images, path):
        _refuse_existing(target)
    return ExitCode.OK


@image.command()
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="NEW")
@click.option("--linked", is_flag=True, help="Make an overlay, which takes no time and no room.")
@place_options
@click.pass_obj
def clone(
    session: Session, source: str, target: str, linked: bool, **options: Unpack[PlaceOptions]
) -> int:
    """Make another image with the same content.

    A copy has everything in itself, also what an overlay had in its base. Of a VM that runs it is
    what the disk held when it began, with the guest's file systems written out where its agent
    answers; it is qcow2 then, and in STATE/images or imageDirs where QEMU is not root's. With
    --linked the new image only keeps what is written to it; the original must not be written to
    from then on.

    \b
    Example:
      arcsup image clone windows.qcow2 windows-2.qcow2
    """
    from arcsup.vm.image_changes import clone_image
    from arcsup.vm.image_files import create_folder_of

    users = find_users(session, **options)
    path = _find(users, source)
    running = None if linked else users.find_running(path)
    if running is None:
        _refuse_running(users, path, disk_only=True)
    new = users.resolve(target)
    if new.is_relative_to(users.resolve(".")):
        create_folder_of(new)
    with showing_progress(f"copying {source}") as report:
        if running is not None:
            _clone_in_qemu(session, running[0], path, new, report)
        else:
            trusted = users.trust_beside(path)
            _work(lambda: clone_image(path, new, report, trusted, linked=linked))
    if running is not None and users.format_of(path) != "qcow2":
        print(f"{target} is qcow2: a VM file says `format: qcow2`", file=sys.stderr)
    return ExitCode.OK


def _clone_in_qemu(
    session: Session, vm: str, path: Path, new: Path, report: Callable[[float], None]
) -> None:
    """Have a running QEMU copy one of its disks: nobody else may read what it writes to."""
    body = {"disk": str(path), "target": str(new)}
    for percent in follow_work(session.client.stream(vm_path(vm, "clone"), body=body)):
        report(percent)


@image.command()
@click.argument("path", metavar="IMAGE")
@place_options
@click.pass_obj
def commit(session: Session, path: str, **options: Unpack[PlaceOptions]) -> int:
    """Make what an overlay shows the content of its base.

    The new base is finished and on the disk before it takes the old one's place; the overlay is
    empty afterwards. It is refused while a VM uses one of the two, and where other overlays stand
    on the same base, which would see other data under what they have.

    \b
    Example:
      arcsup image commit windows-updates.qcow2
    """
    from arcsup.vm.image_changes import commit_image

    users = find_users(session, **options)
    overlay = _find(users, path)
    _refuse_running(users, overlay)
    listed = list_images(users)
    base = next((it["base"] for it in listed if users.resolve(it["path"]) == overlay), None)
    if base is not None:
        whole = users.resolve(base)
        _refuse_running(users, whole)
        others = [
            it["path"]
            for it in listed
            if it["base"] is not None
            and users.resolve(it["base"]) == whole
            and users.resolve(it["path"]) != overlay
        ]
        if others:
            raise Refused(
                f"{base} is the base of {', '.join(others)} too",
                f"arcsup image clone {path} NEW: a copy that needs no base",
            )
    with showing_progress(f"committing {path}") as report:
        _work(lambda: commit_image(overlay, report, users.trust_beside(overlay)))
    return ExitCode.OK


@image.command()
@click.argument("path", metavar="IMAGE")
@click.argument("name", metavar="[SNAPSHOT]", required=False)
@click.option("--delete", is_flag=True, help="Forget the snapshot instead.")
@place_options
@click.pass_obj
def snapshot(
    session: Session, path: str, name: str | None, delete: bool, **options: Unpack[PlaceOptions]
) -> int:
    """Keep the state of an image inside the image, to come back to it.

    Works while a VM runs on it, too: then it is what a disk holds after a power cut. The name is
    the time by default, and is printed. Only qcow2 has snapshots; `image list -o wide` shows them.

    \b
    Example:
      arcsup image snapshot windows.qcow2 before-update
      arcsup image snapshot windows.qcow2 before-update --delete
    """
    from arcsup.vm.image_changes import remove_snapshot, take_snapshot

    if delete and name is None:
        raise UsageError("--delete needs the name of a snapshot")
    name = name or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    users = find_users(session, **options)
    whole = _find(users, path)
    running = users.find_running(whole)
    if running is not None:
        _change_in_qemu(session, *running, name, delete=delete)
    else:
        _work(remove_snapshot if delete else take_snapshot, whole, name)
    if not delete:
        print(name)
    return ExitCode.OK


def _change_in_qemu(session: Session, vm: str, node: str, name: str, *, delete: bool) -> None:
    """Have a running QEMU make or forget a snapshot: it holds the image's lock."""
    command = f"blockdev-snapshot-{'delete-' if delete else ''}internal-sync"
    body = {"execute": command, "arguments": {"device": node, "name": name}}
    session.client.post(vm_path(vm, "qmp"), body)


@image.command()
@click.argument("path", metavar="IMAGE")
@click.argument("name", metavar="SNAPSHOT")
@place_options
@click.pass_obj
def revert(session: Session, path: str, name: str, **options: Unpack[PlaceOptions]) -> int:
    """Bring an image back to a snapshot; what was written since is lost.

    The VM must be stopped: a guest does not survive that its disk changes under it.

    \b
    Example:
      arcsup image revert windows.qcow2 before-update
    """
    from arcsup.vm.image_changes import revert_image

    users = find_users(session, **options)
    whole = _find(users, path)
    _refuse_running(users, whole)
    _work(revert_image, whole, name)
    return ExitCode.OK


def _find(users: Users, path: str) -> Path:
    """Return the real path of an image that is there. NoSuchObject, NotPermitted."""
    whole = users.resolve(path)
    try:
        whole.stat()
    except PermissionError:
        raise NotPermitted(f"{whole}: you may not look there") from None
    except OSError:
        hint = "arcsup image list shows those there are"
        if not Path(path).is_absolute() and Path(path).exists():
            hint = f"a relative path is relative to {users.images}: say {Path(path).absolute()}"
        raise NoSuchObject(f"there is no image {whole}", hint) from None
    _check_format(users, whole)
    return whole


def _check_format(users: Users, path: Path) -> None:
    """Refuse a disk that says of itself what no VM file says: its guest can have written that."""
    from arcsup.vm.qemu_img import find_format

    said, found = users.format_of(path), find_format(path)
    if said is not None and (said == "qcow2") is not (found == "qcow2"):
        raise Refused(
            f"{path} is {found}, a VM file says {said}",
            "correct the file, if it was not the guest who wrote that into its disk",
        )


def _refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise Refused(f"{target} is there already", "choose another name, or move it away")


def _refuse_running(users: Users, path: Path, *, disk_only: bool = False) -> None:
    for user in users.of(path):
        if user["state"] in UP and (user["use"] == "disk" or not disk_only):
            raise Refused(
                f"{path} is in use by VM {user['vm']}, which is {user['state']}",
                f"arcsup stop {user['vm']}",
            )


def _take_size(text: str) -> "MiB":
    """Return a size. A bare number is MiB in VM files and GiB in `create`: here it is refused."""
    from arcsup.spec.units import parse_size

    if text.isdecimal():
        raise UsageError(f"{text} of what? say {text}GiB")
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"{text!r}: {error}") from None


def _work(function: Callable[..., Any], *arguments: object) -> Any:
    import trio

    return trio.run(function, *arguments)
