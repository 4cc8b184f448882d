"""The verbs on images, with the real qemu-img and without a daemon."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from arcsup.cli.image_list import format_size
from arcsup.cli.progress import showing_progress
from arcsup.errors import Terminal, Transient
from arcsup.vm import image_changes, qemu_img
from arcsup.vm.image_lock import hold_image
from arcsup.vm.layers import open_layers
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor
from tests.open_images import open_for_writing

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

MIB = 1 << 20


class Store:
    """A state directory and the command line on it."""

    def __init__(self, top: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.top = top
        self.images = top / "state" / "images"
        self.images.mkdir(parents=True)
        self.vms = top / "vms"
        self.vms.mkdir()
        self._cli = Cli(FakeSupervisor(), top / "nowhere", capsys)

    def __call__(self, verb: str, *arguments: str) -> Any:
        places = ("--state", str(self.top / "state"), "--vms", str(self.vms))
        return self._cli("image", verb, *places, *arguments)

    def make(self, name: str, size: str = "8M", *options: str) -> Path:
        path = self.images / name
        qemu("qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), size)
        return path

    def write(self, name: str, pattern: int, at: str = "0", form: str = "qcow2") -> None:
        command = f"write -P {pattern} {at} 64k"
        qemu("qemu-io", "-f", form, "-c", command, str(self.images / name))

    def holds(self, name: str, pattern: int, at: str = "0", form: str = "qcow2") -> bool:
        command = f"read -P {pattern} {at} 64k"
        out = qemu("qemu-io", "-f", form, "-c", command, str(self.images / name))
        return "verification failed" not in out

    def names(self) -> list[str]:
        return sorted(os.listdir(self.images))


def qemu(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Store:
    return Store(tmp_path, capsys)


# --- list ----------------------------------------------------------------------------------------


def test_list_shows_sizes_formats_bases_and_users(store: Store) -> None:
    store.make("base.qcow2")
    store.make("top.qcow2", "16M", "-b", "base.qcow2", "-F", "qcow2")
    (store.images / "data.raw").write_bytes(bytes(MIB))
    (store.images / "cd").write_bytes(bytes(16 * 2048) + b"\1CD001" + bytes(4096))
    (store.images / "vmlinuz").write_bytes(b"no image")
    (store.images / ".top.qcow2.x.part").write_bytes(b"half done")
    (store.vms / "web.yaml").write_text(
        "disks: [{path: top.qcow2, base: base.qcow2}, {path: data.raw, format: raw}]\n"
        "cdroms: [cd]\nboot: {kernel: vmlinuz}\n"
    )

    shown = {it["path"]: it for it in store("list", "-o", "json").json}

    assert sorted(shown) == ["base.qcow2", "cd", "data.raw", "top.qcow2"]
    assert {name: it["format"] for name, it in shown.items()} == {
        "base.qcow2": "qcow2",
        "cd": "iso",
        "data.raw": "raw",
        "top.qcow2": "qcow2",
    }
    top = shown["top.qcow2"]
    assert (top["virtualSize"], top["base"], top["error"]) == (16 * MIB, "base.qcow2", None)
    assert 0 < top["size"] < MIB
    assert top["users"] == [{"vm": "web", "state": None, "use": "disk"}]
    assert shown["base.qcow2"]["users"] == [{"vm": "web", "state": None, "use": "base"}]

    table = store("list", "-o", "wide").out.splitlines()
    assert " ".join(table[0].split()) == "IMAGE SIZE VIRTUAL FORMAT BASE SNAPSHOTS USED BY"
    assert table[1].endswith("web (base)")
    assert store("list", "-o", "name").out.split() == sorted(shown)


def test_an_image_elsewhere_is_listed_and_a_broken_one_says_why(store: Store) -> None:
    elsewhere = store.top / "elsewhere.raw"
    elsewhere.write_bytes(bytes(512))
    (store.images / "broken.qcow2").write_bytes(b"QFI\xfb" + bytes(100))
    (store.vms / "a.yaml").write_text(f"disks: [{{path: {elsewhere}, format: raw}}]\n")

    shown = {it["path"]: it for it in store("list", "--json").json}

    assert shown[str(elsewhere)]["virtualSize"] == 512
    assert "Unsupported qcow2 version" in shown["broken.qcow2"]["error"]
    assert shown["broken.qcow2"]["virtualSize"] is None


def test_an_empty_place_has_no_images(store: Store) -> None:
    shutil.rmtree(store.images)

    result = store("list")
    assert (result.code, result.out, result.err) == (0, "", "no images\n")


def test_sizes_are_told_in_their_largest_unit() -> None:
    assert [format_size(it) for it in (None, 0, 1536, 64 << 30)] == [
        "-",
        "0 B",
        "1.5 KiB",
        "64 GiB",
    ]


# --- create and clone ----------------------------------------------------------------------------


def test_create_makes_an_image_and_an_overlay(store: Store) -> None:
    assert store("create", "sub/data.qcow2", "12MiB").code == 0
    assert store("create", "top.qcow2", "--base", "sub/data.qcow2").code == 0

    shown = {it["path"]: it for it in store("list", "--json").json}
    assert shown["sub/data.qcow2"]["virtualSize"] == 12 * MIB
    assert shown["top.qcow2"]["base"] == "sub/data.qcow2"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("there.qcow2", "1GiB"), 6, "there already"),
        (("a.qcow2",), 2, "how large"),
        (("a.qcow2", "100"), 2, "say 100GiB"),
        (("a.qcow2", "lots"), 2, "lots"),
        (("a.qcow2", "--base", "none.qcow2"), 4, "there is no image"),
        (("a.raw", "--base", "there.qcow2", "--format", "raw"), 1, "only qcow2"),
    ],
)
def test_what_cannot_be_made_is_said(
    store: Store, arguments: tuple[str, ...], code: int, said: str
) -> None:
    store.make("there.qcow2")

    result = store("create", *arguments)

    assert (result.code, result.out) == (code, "")
    assert said in result.err
    assert store.names() == ["there.qcow2"]


def test_a_clone_has_all_in_itself(store: Store) -> None:
    store.make("base.qcow2")
    store.write("base.qcow2", 1)
    store.make("top.qcow2", "8M", "-b", "base.qcow2", "-F", "qcow2")
    store.write("top.qcow2", 2, "1M")
    (store.images / "top.qcow2").chmod(0o640)

    assert store("clone", "top.qcow2", "copy.qcow2").code == 0
    (store.images / "base.qcow2").unlink()

    assert store.holds("copy.qcow2", 1)
    assert store.holds("copy.qcow2", 2, "1M")
    assert (store.images / "copy.qcow2").stat().st_mode & 0o777 == 0o640


def test_a_clone_into_a_folder_makes_it_among_the_images_only(store: Store) -> None:
    store.make("a.qcow2")

    assert store("clone", "a.qcow2", "sub/b.qcow2").code == 0
    refused = store("clone", "a.qcow2", str(store.top / "none" / "b.qcow2"))
    assert (refused.code, "no such file or directory" in refused.err) == (1, True)


def test_a_linked_clone_keeps_only_what_is_written_to_it(store: Store) -> None:
    store.make("base.qcow2")
    store.write("base.qcow2", 1)

    assert store("clone", "--linked", "base.qcow2", "copy.qcow2").code == 0
    store.write("copy.qcow2", 2, "1M")

    assert store.holds("copy.qcow2", 1)
    assert store.holds("base.qcow2", 0, "1M")


def test_a_clone_is_refused_over_another_image_and_while_somebody_writes(store: Store) -> None:
    image = store.make("a.qcow2")
    store.make("b.qcow2")

    assert store("clone", "a.qcow2", "b.qcow2").code == 6
    with open_for_writing(image) as pid:
        result = store("clone", "a.qcow2", "c.qcow2")
    assert result.code == 6
    assert f"a.qcow2 is in use by process {pid}" in result.err
    assert store.names() == ["a.qcow2", "b.qcow2"]


def test_a_header_that_a_guest_wrote_into_its_raw_disk_is_not_believed(store: Store) -> None:
    """Such a header can name any file of the host as its base."""
    store.make("disk.raw", "8M", "-b", "/etc/passwd", "-F", "raw")
    (store.vms / "a.yaml").write_text("disks: [{path: disk.raw, format: raw}]\n")

    result = store("clone", "disk.raw", "copy.qcow2")

    assert result.code == 6
    assert "is qcow2, a VM file says raw" in result.err
    assert store.names() == ["disk.raw"]


@pytest.mark.parametrize("verb", [("clone", "disk.qcow2", "copy.qcow2"), ("commit", "disk.qcow2")])
def test_a_base_that_a_guest_wrote_into_its_header_is_not_followed(
    store: Store, verb: tuple[str, ...]
) -> None:
    """Followed as root, it would put a file of the host into an image, or an image in its place."""
    secret = store.top / "secret"
    secret.write_bytes(b"secret" * 1000)
    store.make("disk.qcow2", "8M", "-b", str(secret), "-F", "raw")
    (store.vms / "a.yaml").write_text("disks: [{path: disk.qcow2}]\n")

    result = store(*verb)

    assert result.code == 6
    assert "secret, which no VM file names" in result.err
    assert store.names() == ["disk.qcow2"]
    assert secret.read_bytes() == b"secret" * 1000


def test_data_in_another_file_is_not_read(store: Store) -> None:
    image = store.images / "a.qcow2"
    data = f"data_file={store.top / 'data'}"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", data, str(image), "8M")

    assert "keeps its data in another file" in store("clone", "a.qcow2", "b.qcow2").err


def test_an_image_that_builds_upon_itself_is_told(store: Store) -> None:
    image = store.make("a.qcow2")
    qemu("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(image), str(image))

    assert "builds upon more than 32 images" in store("clone", "a.qcow2", "b.qcow2").err


def test_a_copy_that_does_not_fit_is_not_begun(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        f_bavail, f_frsize = 1, 4096

    store.make("a.qcow2")
    monkeypatch.setattr(os, "statvfs", lambda _path: Full)

    result = store("clone", "a.qcow2", "b.qcow2")

    assert result.code == 1
    assert "0 MiB are free" in result.err


def test_an_image_beside_the_caller_is_pointed_at(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.top / "here.qcow2").touch()
    monkeypatch.chdir(store.top)

    result = store("clone", "here.qcow2", "b.qcow2")

    assert result.code == 4
    assert f"say {store.top / 'here.qcow2'}" in result.err


# --- commit --------------------------------------------------------------------------------------


def make_overlay(store: Store, base_format: str = "qcow2") -> None:
    qemu("qemu-img", "create", "-q", "-f", base_format, str(store.images / "base"), "8M")
    store.write("base", 1, form=base_format)
    store.make("top.qcow2", "8M", "-b", "base", "-F", base_format)
    store.write("top.qcow2", 2, "1M")


@pytest.mark.parametrize("base_format", ["qcow2", "raw"])
def test_a_commit_moves_the_overlay_into_its_base(store: Store, base_format: str) -> None:
    make_overlay(store, base_format)
    (store.images / "base").chmod(0o644)

    result = store("commit", "top.qcow2")

    assert (result.code, result.err) == (0, "")
    assert store.holds("base", 1, form=base_format)
    assert store.holds("base", 2, "1M", form=base_format)
    assert store.holds("top.qcow2", 2, "1M")
    overlay = json.loads(qemu("qemu-img", "map", "--output=json", str(store.images / "top.qcow2")))
    assert {extent["depth"] for extent in overlay} == {1}, "the overlay is not empty"
    assert (store.images / "base").stat().st_mode & 0o777 == 0o644
    assert store.names() == ["base", "top.qcow2"]


def test_a_commit_that_ends_half_way_changes_nothing_that_anybody_sees(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_overlay(store)
    names = store.names()

    async def fail(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    # Before the new base is there, and after it: between the two renames.
    for step in ("copy_image", "make_empty_image"):
        with monkeypatch.context() as patch:
            patch.setattr(image_changes, step, fail)
            assert store("commit", "top.qcow2").code == 130
        assert store.names() == names
        assert store.holds("top.qcow2", 1)
        assert store.holds("top.qcow2", 2, "1M")
    assert store("commit", "top.qcow2").code == 0
    assert store.holds("base", 2, "1M")


def test_a_commit_is_refused_where_it_would_harm(store: Store) -> None:
    make_overlay(store)

    assert "is no overlay" in store("commit", "base").err
    with open_for_writing(store.images / "top.qcow2") as pid:
        assert f"in use by process {pid}" in store("commit", "top.qcow2").err
    store.make("other.qcow2", "8M", "-b", "base", "-F", "qcow2")
    result = store("commit", "top.qcow2")
    assert (result.code, "is the base of other.qcow2 too" in result.err) == (6, True)
    (store.images / "other.qcow2").unlink()
    store("snapshot", "base", "old")
    assert "which would be lost" in store("commit", "top.qcow2").err
    assert store.holds("base", 0, "1M")


async def test_nobody_opens_an_image_that_is_held(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", str(image), "8M")
    argv = ["qemu-io", "-f", "qcow2", "-c", "quit", str(image)]

    async with hold_image(image):
        for options in ([], ["-r"]):
            held = subprocess.run([*argv, *options], capture_output=True, text=True, check=False)
            assert "lock" in held.stderr
    assert subprocess.run(argv, check=False).returncode == 0


async def test_nobody_waits_for_an_image_that_is_a_pipe_by_now(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")

    with pytest.raises(Terminal, match="is a fifo, expected a file or a block device"):
        async with hold_image(tmp_path / "a"):
            pass
    with pytest.raises(Terminal, match="is a fifo, expected a file or a block device"):
        await qemu_img.observe_image(tmp_path / "a")


async def test_a_replaced_image_is_held_until_its_last_opener_gave_up(tmp_path: Path) -> None:
    image = tmp_path / "a"
    image.write_bytes(b"old")
    let_go = trio.Event()

    async def replace() -> None:
        async with hold_image(image):
            (tmp_path / "b").write_bytes(b"new")
            (tmp_path / "b").replace(image)
        let_go.set()

    with image.open("rb") as stream:
        opener = subprocess.Popen(["sleep", "600"], stdin=stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replace)
        with trio.move_on_after(0.2):
            await let_go.wait()
        assert not let_go.is_set()
        opener.kill()
        with trio.fail_after(10):
            await let_go.wait()
    opener.wait()


# --- snapshots -----------------------------------------------------------------------------------


def test_a_snapshot_is_come_back_to(store: Store) -> None:
    store.make("a.qcow2")
    store.write("a.qcow2", 1)
    assert store("snapshot", "a.qcow2", "before").out == "before\n"
    store.write("a.qcow2", 2)

    listed = store("list", "--json").json[0]["snapshots"]
    assert [it["name"] for it in listed] == ["before"]
    assert store("revert", "a.qcow2", "before").code == 0
    assert store.holds("a.qcow2", 1)

    assert store("snapshot", "--delete", "a.qcow2", "before").code == 0
    assert store("list", "--json").json[0]["snapshots"] == []


def test_a_snapshot_is_named_by_its_time(store: Store) -> None:
    store.make("a.qcow2")
    name = store("snapshot", "a.qcow2").out.strip()

    assert name in store("list", "-o", "wide").out
    assert name.startswith("20")


def test_snapshots_that_cannot_be_are_refused(store: Store) -> None:
    image = store.make("a.qcow2")
    (store.images / "b.raw").write_bytes(bytes(512))
    store("snapshot", "a.qcow2", "one")

    assert "has a snapshot one already" in store("snapshot", "a.qcow2", "one").err
    missing = store("revert", "a.qcow2", "two")
    assert (missing.code, "it has one" in missing.err) == (4, True)
    assert store("snapshot", "--delete", "a.qcow2", "two").code == 4
    assert "only qcow2 keeps snapshots" in store("snapshot", "b.raw").err
    assert store("snapshot", "a.qcow2", "--delete").code == 2
    with open_for_writing(image):
        assert store("revert", "a.qcow2", "one").code == 6


# --- long work -----------------------------------------------------------------------------------


def test_progress_is_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with showing_progress("copying") as report:
        report(50)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with showing_progress("copying") as report:
        for percent in (1.2, 1.4, 50):
            report(percent)
    assert capsys.readouterr().err == f"\rcopying: 1 %\rcopying: 50 %\r{' ' * 13}\r"


async def test_a_copy_tells_how_far_it_is(tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(os.urandom(4 * MIB))
    told: list[float] = []

    with ExitStack() as opened, (tmp_path / "b").open("wb") as target:
        layers = open_layers(image, lambda _: False, opened)
        await qemu_img.copy_image(layers, target, "raw", told.append)

    assert told[-1] == 100
    assert told == sorted(told)
    assert (tmp_path / "b").read_bytes() == image.read_bytes()


async def test_a_copy_that_gets_stuck_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "qemu-img").write_text("#!/bin/sh\necho '(1.00/100%)'; exec sleep 600\n")
    (folder / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(qemu_img, "STALLED", 0.3)
    (tmp_path / "a").write_bytes(bytes(512))

    with ExitStack() as opened, (tmp_path / "b").open("wb") as target:
        layers = open_layers(tmp_path / "a", lambda _: False, opened)
        with trio.fail_after(60), pytest.raises(Transient, match="no progress"):
            await qemu_img.copy_image(layers, target, "raw", qemu_img.report_nothing)
