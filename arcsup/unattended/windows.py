"""Windows Setup's answer file, autounattend.xml, read from the root of any drive.

Source: Microsoft, "Unattended Windows Setup Reference": the components, their settings, and that
passwords are base64 of UTF-16 with the setting's name behind; "Implicit Answer File Search Order".
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree as ET

from arcsup.unattended.wishes import Wishes

FILE = "autounattend.xml"
LABEL = "ANSWERS"

LONGEST_NAME = 15
"""Characters of a NetBIOS name."""

DRIVER_LETTERS = "DEFGH"
"""Drives that Setup gives to the CD-ROMs; a path that is not there is passed over."""

DRIVERS = ("viostor", "vioscsi", "NetKVM", "Balloon", "vioserial", "qxldod", "ivshmem")
"""Folders of virtio-win's ISO: VERSION and architecture are below each."""

_NAMESPACE = "urn:schemas-microsoft-com:unattend"
_WCM = "http://schemas.microsoft.com/WMIConfig/2002/State"

Settings = Mapping[str, "str | Settings | Sequence[Settings]"]
"""Element names and what is in them; a sequence is a list whose items are added one by one."""


def write_autounattend(
    wishes: Wishes,
    *,
    uefi: bool,
    version: str,
    edition: str,
    product_key: str,
    drivers: bool,
) -> str:
    """Return the file. ``version`` is virtio-win's word for it: w10, w11, 2k22, 2k25.

    The whole first disk is used; the first user logs in once, which powers the guest off.
    """
    language = wishes.locale.replace("_", "-")
    words = dict.fromkeys(("InputLocale", "SystemLocale", "UILanguage", "UserLocale"), language)
    pe: dict[str, Settings] = {
        "Microsoft-Windows-International-Core-WinPE": {
            "SetupUILanguage": {"UILanguage": language},
            **words,
        },
        "Microsoft-Windows-Setup": _setup(wishes, uefi, edition, product_key),
    }
    if drivers:
        pe["Microsoft-Windows-PnpCustomizationsWinPE"] = {
            "DriverPaths": [{"PathAndCredentials": {"Path": path}} for path in _paths(version)]
        }
    host = wishes.host[:LONGEST_NAME].strip("-")
    passes: dict[str, dict[str, Settings]] = {
        "windowsPE": pe,
        "specialize": {
            "Microsoft-Windows-Shell-Setup": {"ComputerName": host, "TimeZone": wishes.timezone}
        },
        "oobeSystem": {
            "Microsoft-Windows-International-Core": words,
            "Microsoft-Windows-Shell-Setup": _first_user(wishes),
        },
    }
    return _render(passes)


def _setup(wishes: Wishes, uefi: bool, edition: str, product_key: str) -> Settings:
    image: dict[str, str | Settings | Sequence[Settings]] = {
        "InstallTo": {"DiskID": "0", "PartitionID": "3" if uefi else "1"}
    }
    if edition:
        chosen: Settings = {"Key": "/IMAGE/NAME", "Value": edition}
        image = {"InstallFrom": [{"MetaData": chosen}], **image}
    user: dict[str, str | Settings | Sequence[Settings]] = {
        "AcceptEula": "true",
        "FullName": wishes.user,
    }
    if product_key:
        user["ProductKey"] = {"Key": product_key, "WillShowUI": "OnError"}
    disk: Settings = {
        "DiskID": "0",
        "WillWipeDisk": "true",
        **(_UEFI_PARTITIONS if uefi else _BIOS_PARTITIONS),
    }
    return {
        "DiskConfiguration": [{"Disk": disk}],
        "ImageInstall": {"OSImage": image},
        "UserData": user,
    }


def _partitions(created: Sequence[Settings], modified: Sequence[Settings]) -> Settings:
    return {
        "CreatePartitions": [
            {"CreatePartition": {"Order": str(n), **one}} for n, one in enumerate(created, 1)
        ],
        "ModifyPartitions": [
            {"ModifyPartition": {"Order": str(n), **one}} for n, one in enumerate(modified, 1)
        ],
    }


_BIOS_PARTITIONS = _partitions(
    [{"Type": "Primary", "Extend": "true"}],
    [{"PartitionID": "1", "Active": "true", "Format": "NTFS", "Label": "Windows"}],
)
_UEFI_PARTITIONS = _partitions(
    [
        {"Type": "EFI", "Size": "300"},
        {"Type": "MSR", "Size": "16"},
        {"Type": "Primary", "Extend": "true"},
    ],
    [
        {"PartitionID": "1", "Format": "FAT32", "Label": "System"},
        {"PartitionID": "2"},
        {"PartitionID": "3", "Format": "NTFS", "Label": "Windows", "Letter": "C"},
    ],
)


def _paths(version: str) -> Iterator[str]:
    for letter in DRIVER_LETTERS:
        for driver in DRIVERS:
            yield f"{letter}:\\{driver}\\{version}\\amd64"


def _first_user(wishes: Wishes) -> Settings:
    password: Settings = {"Value": _hide(wishes.password), "PlainText": "false"}
    return {
        "OOBE": {
            "HideEULAPage": "true",
            "HideOEMRegistrationScreen": "true",
            "HideOnlineAccountScreens": "true",
            "HideWirelessSetupInOOBE": "true",
            "ProtectYourPC": "3",
        },
        "UserAccounts": {
            "LocalAccounts": [
                {
                    "LocalAccount": {
                        "Password": password,
                        "DisplayName": wishes.user,
                        "Group": "Administrators",
                        "Name": wishes.user,
                    }
                }
            ]
        },
        "AutoLogon": {
            "Password": password,
            "Enabled": "true",
            "LogonCount": "1",
            "Username": wishes.user,
        },
        "FirstLogonCommands": [
            {
                "SynchronousCommand": {
                    "Order": "1",
                    "CommandLine": "shutdown /s /t 10",
                    "Description": "power off: the installation is complete",
                }
            }
        ],
    }


def _hide(password: str) -> str:
    """Not a secret's protection, only Setup's way to write it; the medium is kept private."""
    return base64.b64encode(f"{password}Password".encode("utf-16-le")).decode()


def _render(passes: Mapping[str, Mapping[str, Settings]]) -> str:
    root = ET.Element("unattend", {"xmlns": _NAMESPACE, "xmlns:wcm": _WCM})
    for name, components in passes.items():
        settings = ET.SubElement(root, "settings", {"pass": name})
        for component, content in components.items():
            attributes = {
                "name": component,
                "processorArchitecture": "amd64",
                "publicKeyToken": "31bf3856ad364e35",
                "language": "neutral",
                "versionScope": "nonSxS",
            }
            _fill(ET.SubElement(settings, "component", attributes), content)
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _fill(element: ET.Element, content: Settings) -> None:
    for name, value in content.items():
        child = ET.SubElement(element, name)
        if isinstance(value, str):
            child.text = value
        elif isinstance(value, Mapping):
            _fill(child, value)
        else:
            for number, item in enumerate(value, 1):
                _fill(child, item)
                child[-1].set("wcm:action", "add")
                if child[-1].tag == "PathAndCredentials":
                    child[-1].set("wcm:keyValue", str(number))
