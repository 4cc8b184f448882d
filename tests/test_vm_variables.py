"""A VM's UEFI variables are its own for as long as they fit; else they are kept, never lost."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from arcsup.errors import Terminal
from arcsup.vm import variables
from arcsup.vm.firmware import FirmwareFiles
from arcsup.vm.variables import (
    MOST_KEPT,
    create_vars,
    find_replaced,
    observe_secure_boot,
)
from tests.uefi_stores import PLAIN, SECURE, SWITCH, flash, variable

USED = flash(variable("BootOrder", b"\1\0"), variable("Boot0001", b"the guest's own"))
"""A store without keys that a guest has written to."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "state" / "vars" / "a.fd"


@pytest.fixture
def plain(tmp_path: Path) -> FirmwareFiles:
    return build(tmp_path, "plain", PLAIN)


@pytest.fixture
def secure(tmp_path: Path) -> FirmwareFiles:
    return build(tmp_path, "secure", SECURE, secure=True)


def build(folder: Path, name: str, template: bytes, *, secure: bool = False) -> FirmwareFiles:
    (folder / name).write_bytes(template)
    return FirmwareFiles(folder / "code", folder / name, secure=secure)


def kept_of(store: Path) -> dict[str, bytes]:
    return {it.name: it.read_bytes() for it in sorted(store.parent.glob("*.old-*"))}


def test_variables_are_copied_once_and_never_overwritten(store: Path, plain: FirmwareFiles) -> None:
    assert create_vars(plain, store) is None
    assert store.read_bytes() == PLAIN

    store.write_bytes(USED)
    assert create_vars(plain, store) is None

    assert store.read_bytes() == USED
    assert sorted(it.name for it in store.parent.iterdir()) == ["a.fd", "a.fd.json"]


def test_secure_boot_on_gives_a_store_with_keys_and_keeps_the_old(
    store: Path, plain: FirmwareFiles, secure: FirmwareFiles
) -> None:
    create_vars(plain, store)
    store.write_bytes(USED)

    replaced = create_vars(secure, store)

    assert replaced is not None
    assert "without Secure Boot" in str(replaced)
    assert observe_secure_boot(store) == "enforced"
    assert kept_of(store) == {"a.fd.old-1": USED}
    assert find_replaced(store) == replaced
    assert create_vars(secure, store) is None
    replaced.kept.unlink()
    assert find_replaced(store) is None


def test_secure_boot_off_keeps_the_guests_boot_entries_and_going_back_trusts_no_key_of_then(
    store: Path, plain: FirmwareFiles, secure: FirmwareFiles
) -> None:
    create_vars(secure, store)
    with_entries = flash(variable("PK", b"the key"), variable("Boot0001", b"the guest's own"))
    store.write_bytes(with_entries)

    assert create_vars(plain, store) is not None
    assert store.read_bytes() == with_entries
    # Firmware without Secure Boot lets the guest write what it likes.
    store.write_bytes(flash(variable("PK", b"a key of the guest's")))
    assert create_vars(secure, store) is not None

    assert store.read_bytes() == SECURE
    assert list(kept_of(store)) == ["a.fd.old-1", "a.fd.old-2"]
    assert kept_of(store)["a.fd.old-1"] == with_entries


@pytest.mark.parametrize(
    ("old", "why"),
    [
        (flash(size=8192), "they have 8192 bytes, and those of plain 4096"),
        (b"", "they have 0 bytes"),
        (bytes(4096), "not laid out"),
        (b"QFI\xfb" + bytes(4092), "they are qcow2"),
    ],
)
def test_a_store_of_another_build_is_kept_and_made_anew(
    store: Path, plain: FirmwareFiles, old: bytes, why: str
) -> None:
    store.parent.mkdir(parents=True)
    store.write_bytes(old)
    store.chmod(0o666)

    replaced = create_vars(plain, store)

    assert replaced is not None
    assert why in replaced.because
    assert store.read_bytes() == PLAIN
    assert kept_of(store) == {"a.fd.old-1": old}
    assert replaced.kept.stat().st_mode & 0o777 == 0o600
    assert replaced.kept.stat().st_uid == os.geteuid()


def test_a_newer_template_of_the_same_layout_changes_nothing(
    store: Path, tmp_path: Path, secure: FirmwareFiles
) -> None:
    create_vars(secure, store)
    with_more = flash(variable("PK", b"the key"), variable("dbx", b"newer"))
    assert create_vars(build(tmp_path, "newer", with_more, secure=True), store) is None
    assert store.read_bytes() == SECURE


def test_stores_of_before_there_were_notes_are_judged_by_their_keys(
    store: Path, plain: FirmwareFiles, secure: FirmwareFiles
) -> None:
    store.parent.mkdir(parents=True)
    store.write_bytes(SECURE)
    assert create_vars(secure, store) is None
    store.unlink()
    store.with_name("a.fd.json").unlink()
    store.write_bytes(USED)
    assert create_vars(plain, store) is None
    assert create_vars(secure, store) is not None


def test_keys_that_the_guest_took_away_are_told_and_its_store_stays(
    store: Path, secure: FirmwareFiles
) -> None:
    create_vars(secure, store)
    store.write_bytes(USED)

    assert create_vars(secure, store) is None
    assert observe_secure_boot(store) == "no-keys"
    off = variable("SecureBootEnable", b"\0", SWITCH)
    store.write_bytes(flash(variable("PK"), off))
    assert observe_secure_boot(store) == "switched-off"


def test_a_store_that_is_no_file_or_not_there_is_an_error(
    store: Path, plain: FirmwareFiles
) -> None:
    store.parent.mkdir(parents=True)
    os.mkfifo(store)
    with pytest.raises(Terminal, match="no regular file"):
        create_vars(plain, store)
    store.unlink()
    store.symlink_to("/nowhere/a.fd")
    with pytest.raises(Terminal, match="link to /nowhere/a"):
        create_vars(plain, store)
    assert store.is_symlink()


def test_a_missing_template_is_an_error_and_leaves_nothing(store: Path, tmp_path: Path) -> None:
    with pytest.raises(Terminal, match="UEFI variables"):
        create_vars(FirmwareFiles(tmp_path / "code", tmp_path / "none"), store)
    assert list(store.parent.iterdir()) == []


def test_a_note_that_cannot_be_read_is_told_by_name(store: Path, plain: FirmwareFiles) -> None:
    create_vars(plain, store)
    for text in ("{", "[]", '{"stores": 1}', '{"format": 1, "stores": [{}]}'):
        store.with_name("a.fd.json").write_text(text)
        with pytest.raises(Terminal, match="json cannot be read"):
            create_vars(plain, store)


def test_a_guest_that_spoils_its_store_again_and_again_fills_no_disk(
    store: Path, plain: FirmwareFiles
) -> None:
    create_vars(plain, store)
    for _ in range(MOST_KEPT):
        store.write_bytes(bytes(4096))
        create_vars(plain, store)
    store.write_bytes(bytes(4096))

    with pytest.raises(Terminal, match="are kept already") as caught:
        create_vars(plain, store)

    assert "remove" in caught.value.hint
    assert len(kept_of(store)) == MOST_KEPT
    store.with_name("a.fd.old-1").unlink()
    create_vars(plain, store)
    assert list(kept_of(store))[-1] == "a.fd.old-9"
    assert store.with_name(f"a.fd.old-{MOST_KEPT + 1}").exists()


def test_a_start_that_is_killed_at_any_step_leaves_the_next_one_what_it_needs(
    tmp_path: Path, plain: FirmwareFiles, secure: FirmwareFiles
) -> None:
    for step in range(100):
        store = tmp_path / f"killed-at-{step}" / "a.fd"
        create_vars(plain, store)
        store.write_bytes(USED)

        finished = run_and_die(partial(create_vars, secure, store), step)

        assert store.read_bytes() in (USED, SECURE)
        create_vars(secure, store)
        assert store.read_bytes() == SECURE
        assert kept_of(store) == {"a.fd.old-1": USED}
        assert find_replaced(store) is not None
        assert not store.with_name(".a.fd.new").exists()
        if finished:
            break
    assert step > 5


def run_and_die(work: Callable[[], object], step: int) -> bool:
    """Run something in a child that is killed before its n-th change; tell whether it was not."""
    child = os.fork()
    if child == 0:
        left = [step]

        def counting(function: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **options: object) -> object:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return function(*args, **options)

            return call

        for name in ("link", "fchown", "fchmod", "fsync"):
            setattr(os, name, counting(getattr(os, name)))
        for name in ("replace", "unlink"):
            setattr(Path, name, counting(getattr(Path, name)))
        for name in ("write_durably", "sync_folder"):
            setattr(variables, name, counting(getattr(variables, name)))
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return not os.WIFSIGNALED(status)
