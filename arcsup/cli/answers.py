"""What a person told about an unattended installation, as what the daemon is asked for."""

import re
from pathlib import Path

from attrs import field, frozen

from arcsup.control.shapes import AnswersJson
from arcsup.errors import SpecError, UsageError
from arcsup.model import Firmware, Vm
from arcsup.spec.native import load_vm
from arcsup.unattended import cloud, windows
from arcsup.unattended.debian import write_preseed
from arcsup.unattended.passwords import hash_password
from arcsup.unattended.wishes import Wishes, read_ssh_keys

_VERSION = re.compile(r"[A-Za-z0-9]{2,12}")
_PRODUCT_KEY = re.compile(r"[A-Z0-9]{5}(-[A-Z0-9]{5}){4}")


@frozen
class Told:
    """The words of the command line and of the files that it names."""

    user: str
    password: str = field(repr=False)
    locale: str = "en_US"
    keyboard: str = "us"
    timezone: str = "UTC"
    ssh_keys: str = ""
    version: str = "w11"
    edition: str = ""
    product_key: str = field(default="", repr=False)

    def wishes(self, host: str) -> Wishes:
        """Return the wishes for a guest of that name. Raises UsageError."""
        return Wishes(
            host=host,
            user=self.user,
            password=self.password,
            locale=self.locale,
            keyboard=self.keyboard,
            timezone=self.timezone,
            ssh_keys=read_ssh_keys(self.ssh_keys),
        )


def write_answers(kind: str, source: str, file: Path, told: Told, *, drivers: bool) -> AnswersJson:
    """Return the answers for the VM of a file. ``kind`` is windows, debian or cloud-init.

    Raises SpecError for a faulty file, UsageError for what cannot stand in an answer.
    """
    vm = load_vm(source, file, "")
    wishes = told.wishes(vm.name)
    if kind == "windows":
        return _for_windows(vm, wishes, told, drivers=drivers)
    hashed = hash_password(wishes.password)
    if kind == "cloud-init":
        return {"label": cloud.LABEL, "files": cloud.write_seed(wishes, hashed)}
    if not vm.disks:
        raise SpecError(f"{file}:1:1: disks: expected a disk to install on, got none")
    return {"preseed": write_preseed(wishes, hashed, vm.disks[0].bus)}


def _for_windows(vm: Vm, wishes: Wishes, told: Told, *, drivers: bool) -> AnswersJson:
    if not _VERSION.fullmatch(told.version):
        raise UsageError(f"--windows-version: expected a word such as w11, got {told.version!r}")
    if told.product_key and not _PRODUCT_KEY.fullmatch(told.product_key):
        raise UsageError(
            "the product key is not five groups of five letters or digits with - between"
        )
    text = windows.write_autounattend(
        wishes,
        uefi=vm.firmware is not Firmware.BIOS,
        version=told.version,
        edition=told.edition,
        product_key=told.product_key,
        drivers=drivers,
    )
    return {"label": windows.LABEL, "files": {windows.FILE: text}}
