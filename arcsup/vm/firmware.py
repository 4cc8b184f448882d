"""UEFI firmware: which OVMF build a VM runs, and how QEMU gets it.

Source: QEMU's docs/interop/firmware.json. Distributions describe their builds in JSON files; a
file in an earlier folder hides one of the same name in a later folder, an empty one hides it
altogether, and the names' order is the order of preference.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cattrs
import cattrs.gen
from attrs import field, frozen

from arcsup.errors import Terminal
from arcsup.model import Argv, Firmware
from arcsup.vm.options import escape

DESCRIPTOR_FOLDERS = (
    Path("/etc/qemu/firmware"),
    Path("/usr/local/share/qemu/firmware"),
    Path("/usr/share/qemu/firmware"),
)
INSTALL_HINT = "install ovmf (Debian, Ubuntu) or edk2-ovmf (Fedora, Arch, RHEL)"

ImageFormat = Literal["raw", "qcow2"]


@frozen
class FirmwareFiles:
    """An OVMF build: its code, and the variables that a new VM starts with."""

    code: Path
    template: Path
    code_format: ImageFormat = "raw"
    vars_format: ImageFormat = "raw"
    secure: bool = False


@frozen
class _File:
    filename: Path
    format: ImageFormat = "raw"


@frozen
class _Mapping:
    device: Literal["flash", "memory", "kernel", "igvm"]
    mode: Literal["split", "combined", "stateless"] = "split"
    executable: _File | None = None
    nvram_template: _File | None = None


@frozen
class _Target:
    architecture: str
    machines: tuple[str, ...] = ()


@frozen
class _Descriptor:
    mapping: _Mapping
    targets: tuple[_Target, ...]
    interface_types: tuple[str, ...]
    features: frozenset[str] = field(factory=frozenset)

    def fits(self, *, secure: bool) -> bool:
        """Whether this is split UEFI flash for q35 on x86-64, with keys enrolled or without SB.

        A build with Secure Boot and an empty variable store is neither: it enforces nothing.
        """
        q35 = any(
            target.architecture == "x86_64" and any("q35" in machine for machine in target.machines)
            for target in self.targets
        )
        wanted = {"secure-boot", "enrolled-keys"} if secure else set()
        given = self.features & {"secure-boot", "enrolled-keys"}
        kind = self.mapping.device == "flash" and self.mapping.mode == "split"
        # SEV and TDX builds run only in encrypted guests.
        plain = not any(feature.endswith("-only") for feature in self.features)
        return q35 and kind and plain and "uefi" in self.interface_types and given == wanted


_FALLBACKS = (
    FirmwareFiles(
        Path("/usr/share/OVMF/OVMF_CODE_4M.ms.fd"),
        Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
        secure=True,
    ),
    FirmwareFiles(Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")),
    FirmwareFiles(Path("/usr/share/OVMF/OVMF_CODE.fd"), Path("/usr/share/OVMF/OVMF_VARS.fd")),
    FirmwareFiles(
        Path("/usr/share/edk2/x64/OVMF_CODE.4m.fd"), Path("/usr/share/edk2/x64/OVMF_VARS.4m.fd")
    ),
)
"""Known places for hosts whose packages bring no descriptors."""


def find_firmware(
    firmware: Firmware,
    folders: tuple[Path, ...] = DESCRIPTOR_FOLDERS,
    fallbacks: tuple[FirmwareFiles, ...] = _FALLBACKS,
) -> FirmwareFiles | None:
    """Return the build for a VM's ``firmware``; None for bios, which QEMU brings along.

    Raises:
        Terminal: no build of that kind is installed.
    """
    if firmware is Firmware.BIOS:
        return None
    secure = firmware is Firmware.UEFI_SECURE
    for files in (*_described(folders, secure=secure), *fallbacks):
        if files.secure is secure and files.code.is_file() and files.template.is_file():
            return files
    what = "UEFI firmware with Secure Boot keys" if secure else "UEFI firmware"
    raise Terminal(f"no {what} is installed", hint=INSTALL_HINT)


def _described(folders: tuple[Path, ...], *, secure: bool) -> Iterator[FirmwareFiles]:
    hiding = {file.name: file for folder in reversed(folders) for file in folder.glob("*.json")}
    for _, file in sorted(hiding.items()):
        descriptor = _read_descriptor(file)
        if descriptor is None or not descriptor.fits(secure=secure):
            continue
        code, template = descriptor.mapping.executable, descriptor.mapping.nvram_template
        if code is not None and template is not None:
            yield FirmwareFiles(
                code.filename, template.filename, code.format, template.format, secure
            )


def _read_descriptor(file: Path) -> _Descriptor | None:
    """Return a descriptor; None for one that hides another (empty) or is of a later kind."""
    converter = cattrs.Converter()
    nvram = cattrs.gen.override(rename="nvram-template")
    types = cattrs.gen.override(rename="interface-types")
    mapping = cattrs.gen.make_dict_structure_fn(_Mapping, converter, nvram_template=nvram)
    converter.register_structure_hook(_Mapping, mapping)
    descriptor = cattrs.gen.make_dict_structure_fn(_Descriptor, converter, interface_types=types)
    converter.register_structure_hook(_Descriptor, descriptor)
    try:
        content = json.loads(file.read_bytes())
        # cattrs takes it for granted that an object is one.
        return converter.structure(content, _Descriptor) if isinstance(content, dict) else None
    except (OSError, ValueError, cattrs.BaseValidationError):
        return None


def firmware_args(files: FirmwareFiles | None, variables: str) -> Argv:
    """Return the flash chips; ``-machine`` plugs them in by their node names.

    ``variables`` is what QEMU opens for them.
    """
    if files is None:
        return ()
    code = f"file.driver=file,file.filename={escape(files.code)}"
    kept = f"file.driver=file,file.filename={escape(variables)}"
    argv = [
        "-blockdev", f"driver={files.code_format},node-name=firmware-code,read-only=on,{code}",
        "-blockdev", f"driver={files.vars_format},node-name=firmware-vars,{kept}",
    ]  # fmt: skip
    if files.secure:
        # Only code in system management mode may write the variables (OVMF's README), and
        # a guest that wakes from S3 would leave that protection.
        argv += [
            "-global", "driver=cfi.pflash01,property=secure,value=on",
            "-global", "ICH9-LPC.disable_s3=1",
        ]  # fmt: skip
    return tuple(argv)
