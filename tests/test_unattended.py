"""Answer files: what installers read in them, and that nobody else reads a password."""

import base64
import json
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from attrs import evolve

from arcsup.cli.answers import Told, write_answers
from arcsup.errors import Refused, SpecError, UsageError
from arcsup.model import DiskBus
from arcsup.unattended.cloud import write_seed
from arcsup.unattended.debian import write_preseed
from arcsup.unattended.medium import read_file_of_iso, write_archive, write_medium
from arcsup.unattended.passwords import hash_password
from arcsup.unattended.wishes import Wishes, read_ssh_keys
from tests.installer import write_installer

PASSWORD = "corréct <horse> & 'battery'"
HASH = "$6$salt$hash"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeKeyOfNobody00000000000000000000000000"
WISHES = Wishes("web", "user", PASSWORD, ssh_keys=(KEY,))
TOLD = Told("user", PASSWORD)
FILE = Path("/somewhere/web.yaml")
DISK = "disks: [{path: web.qcow2}]\n"
NAMESPACE = "{urn:schemas-microsoft-com:unattend}"


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program}")


# --- what may stand in an answer -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user": "Big Boss"}, "--user: expected a name"),
        ({"user": "x\nd-i evil"}, "--user: expected a name"),
        ({"locale": "english"}, "--locale: expected a locale"),
        ({"keyboard": "us; rm"}, "--keyboard: expected a layout"),
        ({"timezone": "UTC\nd-i"}, "--timezone: expected a time zone"),
        ({"password": ""}, "the password is empty"),
        ({"password": "a\nb"}, "the password is empty"),
    ],
)
def test_what_could_mean_something_else_is_refused(change: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Told(**{"user": "user", "password": PASSWORD, **change}).wishes("web")


def test_keys_are_taken_without_their_comments() -> None:
    assert read_ssh_keys(f"# mine\n{KEY} user@host '; reboot\n\n") == (KEY,)
    with pytest.raises(UsageError, match="no public SSH key"):
        read_ssh_keys("-----BEGIN OPENSSH PRIVATE KEY-----")


def test_nothing_shows_a_password() -> None:
    told = evolve(TOLD, product_key="AAAAA-AAAAA-AAAAA-AAAAA-AAAAA")

    assert PASSWORD not in repr(WISHES)
    assert PASSWORD not in repr(told)
    assert "AAAAA" not in repr(told)


@needs("openssl")
def test_the_hash_is_the_one_that_other_programs_make() -> None:
    hashed = hash_password(PASSWORD)

    salt = hashed.split("$")[2]
    other = subprocess.run(
        ["openssl", "passwd", "-6", "-salt", salt, "-stdin"],
        input=PASSWORD, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert hashed == other.stdout.strip()
    assert hash_password(PASSWORD) != hashed


# --- the files -----------------------------------------------------------------------------------


def test_cloud_init_finds_a_user_with_a_hash_and_powers_off() -> None:
    files = write_seed(WISHES, HASH)

    assert files["user-data"].startswith("#cloud-config\n")
    config = yaml.safe_load(files["user-data"])
    assert config["users"][0]["hashed_passwd"] == HASH
    assert config["users"][0]["ssh_authorized_keys"] == [KEY]
    assert config["power_state"]["mode"] == "poweroff"
    assert json.loads(files["meta-data"])["local-hostname"] == "web"
    assert PASSWORD not in "".join(files.values())


@needs("debconf-set-selections")
def test_debconf_takes_the_preseed(tmp_path: Path) -> None:
    (tmp_path / "preseed.cfg").write_text(write_preseed(WISHES, HASH, DiskBus.VIRTIO))

    checked = subprocess.run(
        ["debconf-set-selections", "-c", tmp_path / "preseed.cfg"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("bus", "device"),
    [
        (DiskBus.VIRTIO, "/dev/vda"),
        (DiskBus.SATA, "/dev/sda"),
        (DiskBus.SCSI, "/dev/sda"),
        (DiskBus.NVME, "/dev/nvme0n1"),
    ],
)
def test_debian_is_installed_on_the_first_disk_and_powers_off(bus: DiskBus, device: str) -> None:
    text = write_preseed(WISHES, HASH, bus)

    assert f"d-i partman-auto/disk string {device}\n" in text
    assert "d-i debian-installer/exit/poweroff boolean true\n" in text
    assert f"d-i passwd/user-password-crypted password {HASH}\n" in text
    assert f"echo '{KEY}' >>/target/home/user/.ssh/authorized_keys" in text


def windows_xml(vm: str, told: Told = TOLD, *, drivers: bool = False) -> ET.Element:
    answers = write_answers("windows", vm, FILE, told, drivers=drivers)
    assert answers["label"] == "ANSWERS"
    text = answers["files"]["autounattend.xml"]
    assert PASSWORD not in text
    return ET.fromstring(text.partition("\n")[2])


def texts(root: ET.Element, name: str) -> list[str]:
    return [element.text or "" for element in root.iter(f"{NAMESPACE}{name}")]


def test_windows_gets_its_disk_its_user_and_an_end() -> None:
    root = windows_xml("firmware: uefi\n" + DISK)

    passes = [element.get("pass") for element in root.iter(f"{NAMESPACE}settings")]
    assert passes == ["windowsPE", "specialize", "oobeSystem"]
    assert texts(root, "Type") == ["EFI", "MSR", "Primary"]
    assert texts(root, "CommandLine") == ["shutdown /s /t 10"]
    values = [base64.b64decode(text).decode("utf-16-le") for text in texts(root, "Value")]
    assert values == [f"{PASSWORD}Password"] * 2
    assert texts(root, "ComputerName") == ["web"]
    assert texts(root, "ProductKey") == []
    assert texts(root, "Path") == []


def test_windows_on_a_bios_has_one_active_partition() -> None:
    root = windows_xml(DISK)

    assert texts(root, "Type") == ["Primary"]
    assert texts(root, "Active") == ["true"]
    assert texts(root, "PartitionID") == ["1", "1"]


def test_windows_may_have_an_edition_a_key_and_drivers() -> None:
    key = "AAAAA-BBBBB-CCCCC-DDDDD-EEEEE"
    told = evolve(TOLD, edition="Windows 11 Pro", product_key=key, version="w10")

    root = windows_xml("name: a-very-long-name-indeed\n" + DISK, told, drivers=True)

    assert "Windows 11 Pro" in texts(root, "Value")
    assert key in texts(root, "Key")
    assert "E:\\viostor\\w10\\amd64" in texts(root, "Path")
    assert texts(root, "ComputerName") == ["a-very-long-nam"]
    with pytest.raises(UsageError, match="five groups of five letters"):
        windows_xml(DISK, evolve(TOLD, product_key="123"))
    with pytest.raises(UsageError, match="expected a word such as w11"):
        windows_xml(DISK, evolve(TOLD, version="..\\.."))


def test_a_vm_without_a_disk_cannot_be_installed() -> None:
    with pytest.raises(SpecError, match="expected a disk to install on"):
        write_answers("debian", "memory: 64\n", FILE, TOLD, drivers=False)


# --- the media -----------------------------------------------------------------------------------


def test_a_medium_holds_its_files_under_their_names(tmp_path: Path) -> None:
    image = tmp_path / "answers.iso"
    image.write_bytes(write_medium("cidata", {"user-data": "one", "meta-data": "two\n"}))

    assert read_file_of_iso(image, "/user-data") == b"one"
    assert read_file_of_iso(image, "/meta-data") == b"two\n"
    with pytest.raises(Refused, match="has no /install"):
        read_file_of_iso(image, "/install.amd/vmlinuz")


@needs("blkid")
def test_linux_finds_it_by_its_label(tmp_path: Path) -> None:
    image = tmp_path / "answers.iso"
    image.write_bytes(write_medium("cidata", {"user-data": "one"}))

    label = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "LABEL", image],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert label.stdout.strip() == "cidata"


def test_what_is_no_iso_or_no_installer_of_debian_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.iso").write_text("no image")

    with pytest.raises(Refused, match="is no ISO image"):
        read_file_of_iso(tmp_path / "text.iso", "/install.amd/vmlinuz")
    with pytest.raises(Refused):
        read_file_of_iso(write_installer(tmp_path / "tiny.iso"), "/install.amd/vmlinuz")


@needs("cpio")
def test_an_archive_holds_its_file_for_root_alone() -> None:
    listed = subprocess.run(
        ["cpio", "-tv"], input=write_archive("preseed.cfg", "é\n"), capture_output=True, check=True
    )

    assert listed.stdout.split()[0] == b"-rw-------"
    assert listed.stdout.split()[-1] == b"preseed.cfg"
