"""What an inventory needs beside the device tree: names, holders, and whose each slice is."""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from attrs import field, frozen

from arcsup.host.holders import Holders, find_holders
from arcsup.host.pci_ids import PciIds
from arcsup.model import MiB, VmName

MDEVCTL_FOLDERS = (Path("/etc/mdevctl.d"), Path("/usr/lib/mdevctl.d"))
"""mdevctl(8): PARENT/UUID is a definition, whether started by it or not."""

TypeSizes = MutableMapping[tuple[str, str], MiB]
"""(model, type id) -> video memory; kept from look to look."""


@frozen
class Surroundings:
    """``owners`` tells by slice id which VM of ours has it; ``mdevctl`` are the uuids it defines.

    ``also`` are PCI functions to look at that are no GPUs. ``sizes`` remembers the video memory of
    types: a full card of NVIDIA's vendor interface does not even name the types that it has.
    """

    ids: PciIds = field(factory=PciIds)
    holders: Holders = field(factory=Holders)
    owners: Mapping[str, VmName] = field(factory=dict)
    mdevctl: frozenset[str] = frozenset()
    also: frozenset[str] = frozenset()
    sizes: TypeSizes = field(factory=dict)
    hostname: str = ""
    kernel: str = ""


def look_around(
    sysfs: Path,
    *,
    owners: Mapping[str, VmName] | None = None,
    ids: PciIds | None = None,
    sizes: TypeSizes | None = None,
    also: frozenset[str] = frozenset(),
) -> Surroundings:
    """Return the surroundings of this host; of another tree than /sys, nobody holds anything."""
    here = sysfs.resolve() == Path("/sys")
    host = os.uname()
    return Surroundings(
        ids=ids or PciIds(),
        holders=find_holders() if here else Holders(),
        owners={} if owners is None else owners,
        mdevctl=find_mdevctl() if here else frozenset(),
        also=also,
        sizes={} if sizes is None else sizes,
        hostname=host.nodename,
        kernel=host.release,
    )


def find_mdevctl(folders: tuple[Path, ...] = MDEVCTL_FOLDERS) -> frozenset[str]:
    """Return the uuids that mdevctl knows, in lower case; none where it may not be looked at."""
    found: set[str] = set()
    for folder in folders:
        try:
            for parent in folder.iterdir():
                if parent.is_dir():
                    found.update(definition.name.lower() for definition in parent.iterdir())
        except OSError:
            continue
    return frozenset(found)
