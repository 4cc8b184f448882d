"""Memory that guests share with viewers: sized, made anew for every start, taken away after."""

import errno
import os
import pwd
import socket
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.model import Audio, LookingGlass, Vm
from arcsup.vm import shared_memory
from arcsup.vm.shared_memory import (
    SharedMemory,
    create_shared_memory,
    find_kvmfr_devices,
    find_shared_memory,
    hold_device,
    looking_glass_mib,
    remove_shared_memory,
)
from arcsup.vm.viewer import Viewer, find_viewer, give_display
from tests.vm_samples import make_vm

VM = evolve(make_vm("a"), looking_glass=LookingGlass(), audio=Audio.SCREAM)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def find_nobody() -> Viewer:
    entry = pwd.getpwnam("nobody")
    return Viewer("nobody", entry.pw_uid, entry.pw_gid, entry.pw_dir)


def find_files(vm: Vm, folder: Path) -> tuple[SharedMemory, ...]:
    return find_shared_memory(vm, lambda _: False, folder=folder, dev=folder)


@pytest.mark.parametrize(
    ("request_", "mib"),
    [
        # The table of Looking Glass's documentation, "Determining memory".
        (LookingGlass(1920, 1080), 32),
        (LookingGlass(1920, 1200), 32),
        (LookingGlass(2560, 1440), 64),
        (LookingGlass(3840, 2160), 128),
        (LookingGlass(1920, 1080, hdr=True), 64),
        (LookingGlass(2560, 1440, hdr=True), 128),
        (LookingGlass(3840, 2160, hdr=True), 256),
    ],
    ids=str,
)
def test_the_size_is_that_of_looking_glasses_table(request_: LookingGlass, mib: int) -> None:
    assert looking_glass_mib(request_) == mib


@given(st.integers(320, 16384), st.integers(200, 16384), st.booleans())
def test_two_frames_fit_into_a_power_of_two_that_is_no_larger_than_needed(
    width: int, height: int, hdr: bool
) -> None:
    size = looking_glass_mib(LookingGlass(width, height, hdr))
    needed = width * height * (8 if hdr else 4) * 2 / 2**20 + 10

    assert size.bit_count() == 1
    assert needed <= size < 2 * (needed + 1)


def test_the_files_have_the_size_of_now_and_nobody_elses_content(tmp_path: Path) -> None:
    create_shared_memory(find_files(VM, tmp_path), None)
    frame = tmp_path / f"kvmfr-{VM.uuid}"
    assert frame.stat().st_size == 32 * 2**20
    frame.write_bytes(b"of an earlier run")

    # The file may be changed while the VM is stopped.
    larger = evolve(VM, looking_glass=LookingGlass(3840, 2160))
    create_shared_memory(find_files(larger, tmp_path), None)

    assert frame.stat().st_size == 128 * 2**20
    assert frame.stat().st_blocks * 512 >= 128 * 2**20, "its space is not set aside"
    assert frame.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / f"kvmsr-{VM.uuid}").stat().st_size == 2 * 2**20

    remove_shared_memory(VM, tmp_path)
    remove_shared_memory(VM, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_each_monitor_has_a_piece_of_its_own(tmp_path: Path) -> None:
    vm = evolve(VM, looking_glass=LookingGlass(monitors=3))
    pieces = find_files(vm, tmp_path)

    assert [piece.id for piece in pieces] == [
        *("looking-glass", "looking-glass1", "looking-glass2"),
        "scream",
    ]
    assert [piece.path.name for piece in pieces[:3]] == [
        f"kvmfr-{vm.uuid}{rest}" for rest in ("", "-1", "-2")
    ]
    assert len({piece.place for piece in pieces}) == 4
    create_shared_memory(pieces, None)
    remove_shared_memory(vm, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_device_with_room_that_nobody_has_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"kvmfr0": 256, "kvmfr1": 16, "kvmfr2": 64}
    for name in sizes:
        (tmp_path / name).touch()
    monkeypatch.setattr(
        shared_memory,
        "_read_kvmfr_size",
        lambda descriptor: sizes[Path(os.readlink(f"/proc/self/fd/{descriptor}")).name],
    )
    held: list[int] = []

    def take(path: Path) -> bool:
        if (descriptor := hold_device(path)) is not None:
            held.append(descriptor)
        return descriptor is not None

    vm = evolve(VM, looking_glass=LookingGlass(monitors=3), audio=Audio.NONE)
    first = find_shared_memory(vm, take, folder=tmp_path / "shm", dev=tmp_path)
    second = find_shared_memory(vm, take, folder=tmp_path / "shm", dev=tmp_path)

    assert [(it.path.name, it.size_mib, it.is_device) for it in first] == [
        ("kvmfr2", 64, True),
        ("kvmfr0", 256, True),
        (f"kvmfr-{VM.uuid}-2", 32, False),
    ]
    assert not any(it.is_device for it in second), "they are the first VM's"
    (tmp_path / "shm").mkdir()
    create_shared_memory(first, None)
    assert (tmp_path / "kvmfr2").stat().st_size == 0
    for descriptor in held:
        os.close(descriptor)
    third = find_shared_memory(vm, take, folder=tmp_path / "shm", dev=tmp_path)
    assert [it.is_device for it in third] == [True, True, False]
    os.close(held[-1])
    os.close(held[-2])


def test_a_file_that_only_has_the_name_of_a_device_is_none(tmp_path: Path) -> None:
    (tmp_path / "kvmfr0").write_bytes(bytes(2**20))

    assert find_kvmfr_devices(tmp_path) == []


def test_a_link_that_somebody_put_there_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"kvmfr-{VM.uuid}").symlink_to(victim)
    create_shared_memory(find_files(VM, tmp_path), None)

    assert victim.read_text() == "precious"


def test_a_folder_in_the_place_of_the_frames_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / f"kvmfr-{VM.uuid}").mkdir()
    (tmp_path / f"kvmfr-{VM.uuid}" / "full").touch()
    create_shared_memory(find_files(VM, tmp_path), None)

    assert (tmp_path / f"kvmfr-{VM.uuid}").stat().st_size == 32 * 2**20
    assert [path.name for path in tmp_path.glob("*/full")] == ["full"], "it is not removed"


def test_a_removal_ends_whatever_is_in_the_files_places(tmp_path: Path) -> None:
    frame, sound = tmp_path / f"kvmfr-{VM.uuid}", tmp_path / f"kvmsr-{VM.uuid}"
    frame.mkdir()
    sound.symlink_to(frame)

    left = remove_shared_memory(VM, tmp_path)

    assert [str(frame), str(sound)] == [what.partition(":")[0] for what in left]
    assert sound.is_symlink()


def test_who_puts_things_in_the_files_place_for_ever_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put_back_at_once(path: Path, missing_ok: bool = False) -> None:
        path.touch()

    monkeypatch.setattr(Path, "unlink", put_back_at_once)
    with pytest.raises(Terminal, match=r"kvmfr-.*cannot be made.*File exists"):
        create_shared_memory(find_files(VM, tmp_path), None)


def test_a_full_file_system_is_told_before_the_guest_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A real one would take the memory of the machine.
    def refuse(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(Terminal, match=r"\(32 MiB\): No space left"):
        create_shared_memory(find_files(VM, tmp_path), None)


@needs_root
def test_the_files_belong_to_who_looks_at_them(tmp_path: Path) -> None:
    viewer = find_nobody()
    create_shared_memory(find_files(VM, tmp_path), viewer)

    for piece in find_files(VM, tmp_path):
        status = piece.path.stat()
        assert (status.st_uid, status.st_gid) == (viewer.uid, viewer.gid)
        assert status.st_mode & 0o777 == 0o600


def test_the_viewer_is_a_user_of_this_host() -> None:
    assert find_viewer(None) is None
    assert find_viewer(pwd.getpwuid(os.geteuid()).pw_name) is None
    with pytest.raises(Terminal, match="viewer: there is no user no-such-user"):
        find_viewer("no-such-user")
    if os.geteuid() == 0:
        assert find_viewer("nobody") == find_nobody()
    else:
        with pytest.raises(Terminal, match="only root"):
            find_viewer("root")


@needs_root
def test_the_viewer_reaches_the_display_and_nothing_else_of_a_vm(short_dir: Path) -> None:
    folder, qemu_folder, viewer = short_dir / "vm", short_dir / "qemu", find_nobody()
    for path in (folder / "qmp.sock", qemu_folder / "display.sock"):
        path.parent.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    (folder / "qmp.sock").chmod(0o600)
    give_display(folder, qemu_folder, viewer)

    for each in (folder, qemu_folder):
        assert each.stat().st_mode & 0o777 == 0o710
        assert (each.stat().st_uid, each.stat().st_gid) == (0, viewer.gid)
    assert (qemu_folder / "display.sock").stat().st_uid == viewer.uid
    assert (qemu_folder / "display.sock").stat().st_mode & 0o777 == 0o600
    assert (folder / "qmp.sock").stat().st_uid == 0


@needs_root
def test_a_link_in_the_displays_place_gives_nothing_away(short_dir: Path) -> None:
    secret = short_dir / "secret"
    secret.touch(mode=0o600)
    (short_dir / "display.sock").symlink_to(secret)

    give_display(short_dir, short_dir, find_nobody())

    assert (secret.stat().st_uid, secret.stat().st_mode & 0o777) == (0, 0o600)


@needs_root
@pytest.mark.parametrize("how", ["a second name", "another owner"])
def test_a_socket_that_is_not_qemus_own_is_given_to_nobody(short_dir: Path, how: str) -> None:
    display = short_dir / "display.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(display))
    account = Account(60955, 60955)
    if how == "a second name":
        os.chown(display, account.uid, account.gid)
        (short_dir / "other.sock").hardlink_to(display)
    owner = display.stat().st_uid

    give_display(short_dir, short_dir, find_nobody(), account)

    assert display.stat().st_uid == owner
    (short_dir / "other.sock").unlink(missing_ok=True)
    os.chown(display, account.uid, account.gid)
    give_display(short_dir, short_dir, find_nobody(), account)
    assert display.stat().st_uid == find_nobody().uid
