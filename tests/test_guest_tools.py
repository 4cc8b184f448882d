"""The guest-tools ISO: what goes in, what is refused, and what a guest finds on it."""

import hashlib
import os
import subprocess
import zipfile
from io import BytesIO
from pathlib import Path

import pycdlib
import pytest

from arcsup.guest_tools import catalog as catalog_module
from arcsup.guest_tools import iso as iso_module
from arcsup.guest_tools.catalog import Tool, Verdict, find_installers, read_catalog
from tests.cli_runner import Cli, Result
from tests.fake_supervisor import FakeSupervisor

SCRIPTS = Path(iso_module.__file__).parent


class Tools:
    """A folder of installers and the command line on it."""

    def __init__(self, top: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = top / "state" / "guest-tools"
        self.folder.mkdir(parents=True)
        self.iso = top / "state" / "images" / "guest-tools.iso"
        self._state = str(top / "state")
        self._cli = Cli(FakeSupervisor(), top / "nowhere", capsys)

    def __call__(self, verb: str, *arguments: str) -> Result:
        return self._cli("guest-tools", verb, "--state", self._state, *arguments)

    def put(self, name: str, content: bytes = b"setup") -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def put_zip(self, name: str, members: dict[str, bytes]) -> None:
        with zipfile.ZipFile(self.folder / name, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)

    def read(self) -> dict[str, bytes]:
        """Return the ISO's files as Windows sees them; Linux must see the same names."""
        disc = pycdlib.PyCdlib()
        disc.open(str(self.iso))
        found = {}
        for kind in ("joliet_path", "rr_path"):
            names = set()
            for folder, _, files in disc.walk(**{kind: "/"}):
                for name in files:
                    path = f"{folder.rstrip('/')}/{name}"
                    names.add(path)
                    content = BytesIO()
                    disc.get_file_from_iso_fp(content, **{kind: path})
                    found[path] = content.getvalue()
            assert names == found.keys()
        disc.close()
        return found


@pytest.fixture
def tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tools:
    return Tools(tmp_path, capsys)


def test_the_catalogue_has_a_version_for_each_checksum() -> None:
    catalog = read_catalog()

    checksums = [tool.checksum for tool in catalog if tool.checksum is not None]
    assert len(checksums) == 4
    assert all(len(bytes.fromhex(checksum)) == 32 for checksum in checksums)
    assert all(tool.version for tool in catalog if tool.checksum)
    assert all(tool.url.startswith("https://") for tool in catalog)
    assert [tool.name for tool in catalog if not tool.optional] == [
        "virtio-win-guest-tools",
        "looking-glass-host",
        "scream",
    ]


def test_list_says_what_is_missing_and_where_it_is(tools: Tools) -> None:
    tools.put("virtio-win-guest-tools.exe")

    shown = {tool["name"]: tool for tool in tools("list", "-o", "json").json}
    assert shown["virtio-win-guest-tools"]["state"] == "unverified"
    assert shown["scream"]["state"] == "missing"
    assert shown["scream"]["file"] is None
    assert "github.com/duncanthrax/scream" in tools("list").out
    assert "sound card" in tools("list", "-o", "wide").out
    assert tools("list", str(tools.folder / "none")).code == 4


def test_checksums_beside_the_installers_are_checked(tools: Tools) -> None:
    right = tools.put("virtio-win-guest-tools.exe")
    tools.put("looking-glass-host-setup.exe")
    told = hashlib.sha256(right.read_bytes()).hexdigest()
    tools.put(
        "SHA256SUMS",
        f"{told}  {right.name}\n{'0' * 64} *looking-glass-host-setup.exe\nnonsense\n".encode(),
    )

    shown = {tool["name"]: tool["state"] for tool in tools("list", "--json").json}
    assert shown["virtio-win-guest-tools"] == "verified"
    assert shown["looking-glass-host"] == "wrong checksum"

    refused = tools("build")
    assert (refused.code, "its checksum is wrong" in refused.err) == (6, True)
    assert not tools.iso.exists()


CONTENT = b"as its publisher made it"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("Scream4.0.zip", CONTENT, Verdict.VERIFIED),
        ("anything-Scream.zip", CONTENT, Verdict.MISSING),
        ("Scream4.0.zip", b"something else", Verdict.WRONG),
        ("Scream4.1.zip", b"something newer", Verdict.UNVERIFIED),
        ("Scream4.0.exe", b"somebody's own name for it", Verdict.UNVERIFIED),
    ],
)
def test_a_file_that_claims_to_be_of_a_known_version_has_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, expected: Verdict
) -> None:
    scream = Tool(
        "scream",
        "",
        ("Scream*.zip", "Scream*.exe"),
        "",
        "",
        "4.0",
        hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setattr(catalog_module, "read_catalog", lambda: (scream,))
    (tmp_path / name).write_bytes(content)

    assert [it.verdict for it in find_installers(tmp_path)] == [expected]


def test_the_iso_has_what_was_there_and_the_scripts(tools: Tools) -> None:
    tools.put("virtio-win-guest-tools-0.1.2.exe", b"virtio")
    tools.put("looking-glass-host-setup-B7.exe", b"looking glass")
    tools.put_zip(
        "Scream3.8.zip",
        {
            "Install/driver/x64/Scream.inf": b"inf",
            "Install/helpers/devcon-x64.exe": b"devcon",
            "../../outside": b"evil",
        },
    )
    tools.put_zip(
        "virtio-win10-prewhql-0.1-161.zip",
        {"Win10/amd64/ivshmem.inf": b"ivshmem", "Win10/amd64/balloon.inf": b"other"},
    )

    built = tools("build")

    assert (built.code, built.out) == (0, f"{tools.iso}\n")
    assert "unverified, nobody told the checksum of this version" in built.err
    found = tools.read()
    assert {path: found[path] for path in found if path.startswith("/tools")} == {
        "/tools/virtio/virtio-win-guest-tools-0.1.2.exe": b"virtio",
        "/tools/looking-glass/looking-glass-host-setup.exe": b"looking glass",
        "/tools/scream/Install/driver/x64/Scream.inf": b"inf",
        "/tools/scream/Install/helpers/devcon-x64.exe": b"devcon",
        "/tools/ivshmem/ivshmem.inf": b"ivshmem",
    }
    assert b"\r\n" in found["/windows/install.ps1"]
    assert b"\r" not in found["/linux/install.sh"]
    assert {"/install.cmd", "/README.txt"} <= found.keys()
    assert tools.iso.read_bytes()[32769:32774] == b"CD001"


def test_what_is_missing_is_told_and_left_out(tools: Tools) -> None:
    built = tools("build")

    assert built.code == 0
    assert "left out: looking-glass-host" in built.err
    assert "spice-guest-tools" not in built.err
    assert "/linux/install.sh" in tools.read()


def test_a_new_iso_takes_the_place_of_the_old_one_whole(tools: Tools) -> None:
    tools("build")
    old = tools.iso.open("rb")
    before = old.read()
    tools.put("virtio-win-guest-tools.exe", b"x" * 100_000)
    tools("build")

    with old:
        old.seek(0)
        assert old.read() == before, "a VM's open drive was changed under it"
    assert "/tools/virtio/virtio-win-guest-tools.exe" in tools.read()
    assert os.listdir(tools.iso.parent) == ["guest-tools.iso"]


def test_archives_that_cannot_be_used_are_named(tools: Tools) -> None:
    tools.put("Scream3.8.zip", b"no archive")
    assert "Scream3.8.zip" in tools("build").err
    (tools.folder / "Scream3.8.zip").unlink()
    tools.put_zip("looking-glass-host-B6.zip", {"readme": b""})
    result = tools("build")
    assert (result.code, "is it the right archive" in result.err) == (1, True)
    assert not tools.iso.exists()


def test_windows_scripts_are_plain_ascii() -> None:
    """PowerShell 5 reads a file without a byte order mark in the machine's own code page."""
    for name in ("install.cmd", "windows/install.ps1", "README.txt"):
        assert (SCRIPTS / name).read_bytes().isascii()


def test_every_folder_that_the_windows_script_looks_into_is_one_of_the_catalogue() -> None:
    script = (SCRIPTS / "windows" / "install.ps1").read_text()

    for tool in read_catalog():
        assert f"'{tool.folder}" in script, tool.folder


@pytest.mark.parametrize(
    ("manager", "expected"),
    [
        ("apt-get", "apt-get install --yes qemu-guest-agent spice-vdagent"),
        ("dnf", "dnf install --assumeyes qemu-guest-agent spice-vdagent"),
        ("zypper", "zypper --non-interactive install qemu-guest-agent spice-vdagent"),
        ("pacman", "pacman --sync --noconfirm --needed qemu-guest-agent spice-vdagent"),
    ],
)
def test_the_linux_script_installs_agents_and_forbids_sleep(
    tmp_path: Path, manager: str, expected: str
) -> None:
    for name in (manager, "systemctl", "id"):
        answer = "echo 0" if name == "id" else f'echo "{name} $*" >> "{tmp_path}/log"'
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)

    done = subprocess.run(
        ["/bin/sh", str(SCRIPTS / "linux" / "install.sh")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    log = (tmp_path / "log").read_text()
    assert expected in log
    assert "systemctl mask sleep.target" in log


def test_checksums_of_large_installers_tell_how_far_they_are(tmp_path: Path) -> None:
    content = bytes(5 << 20)
    (tmp_path / "virtio-win-guest-tools.exe").write_bytes(content)
    (tmp_path / "SHA256SUMS").write_text(
        f"{hashlib.sha256(content).hexdigest()}  virtio-win-guest-tools.exe\n"
    )
    told: list[float] = []

    found = find_installers(tmp_path, told.append)

    assert [it.verdict for it in found if it.file] == ["verified"]
    assert told == [20.0, 40.0, 60.0, 80.0, 100.0]
