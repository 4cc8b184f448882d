"""Device trees in a test's folder: built by hand, and from captures of real hosts.

Links are relative and go where the kernel's go, so that what reads the tree cannot tell.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attrs import frozen

CAPTURES = Path(__file__).resolve().parents[2] / "shared/data/sysfs"
"""Captures of real hosts, where they are beside the checkout."""

GVTG_4 = "low_gm_size: 128MB\nhigh_gm_size: 512MB\nfence: 4\nresolution: 1920x1200\nweight: 4\n"
GVTG_8 = "low_gm_size: 64MB\nhigh_gm_size: 384MB\nfence: 4\nresolution: 1024x768\nweight: 2\n"


def nvidia(mib: int, most: int) -> str:
    """The description of an NVIDIA type of ``mib``, of which a card can have ``most``."""
    return (
        f"num_heads=4, frl_config=60, framebuffer={mib}M, max_resolution=7680x4320, "
        f"max_instance={most}"
    )


@frozen
class TypeFiles:
    """The files of one mediated device type; None: the file is not there."""

    id: str
    name: str | None = None
    description: str | None = None
    available: str | None = "1"
    device_api: str | None = "vfio-pci"


P4 = (
    TypeFiles("nvidia-63", "GRID P4-1Q", nvidia(1024, 8), "8"),
    TypeFiles("nvidia-64", "GRID P4-2Q", nvidia(2048, 4), "4"),
    TypeFiles("nvidia-157", "GRID P4-2B", nvidia(2048, 4), "4"),
    TypeFiles("nvidia-65", "GRID P4-4Q", nvidia(4096, 2), "2"),
)

MBOCHS = tuple(
    TypeFiles(f"mbochs-{size}", f"mbochs-{size}", f"virtual display, {mib} MB video memory", left)
    for size, mib, left in [("small", 4, "64"), ("medium", 16, "16"), ("large", 64, "4")]
)

MTTY = (
    TypeFiles("mtty-1", "Single port serial", None, "24"),
    TypeFiles("mtty-2", "Dual port serial", None, "12"),
)

L40S = """\
ID    : vGPU Name
1147  : NVIDIA L40S-1Q
1148  : NVIDIA L40S-2Q
1156  : NVIDIA L40S-48Q
"""


class Tree:
    """A device tree below ``root``. Paths are relative to it, as in arcsup.host.sysfs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def write(self, path: str, text: str) -> None:
        """Make an attribute."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def link(self, path: str, target: str) -> None:
        """Make a link to ``target``, a path in the tree that need not be there."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(os.path.relpath(self.root / target, file.parent))

    def pci(self, address: str) -> str:
        """The path of a PCI function among its bus's devices."""
        return f"bus/pci/devices/{address}"

    def populate_pci(
        self,
        address: str,
        *,
        pci_class: str = "0x030000",
        ids: str = "10de:1bb3",
        subsystem: str = "10de:11d8",
        driver: str | None = None,
        group: int | None = None,
        files: Mapping[str, str] | None = None,
    ) -> str:
        """Make a PCI function and return its path; ``files`` are further attributes of it."""
        path = f"devices/pci0000:00/{address}"
        vendor, device = ids.split(":")
        board_vendor, board = subsystem.split(":")
        attributes = {
            "class": f"{pci_class}\n",
            "vendor": f"0x{vendor}\n",
            "device": f"0x{device}\n",
            "subsystem_vendor": f"0x{board_vendor}\n",
            "subsystem_device": f"0x{board}\n",
            "numa_node": "-1\n",
            "local_cpulist": "0-1\n",
            "reset_method": "flr bus\n",
        }
        for name, text in {**attributes, **(files or {})}.items():
            self.write(f"{path}/{name}", text)
        self.link(f"{path}/subsystem", "bus/pci")
        self.link(self.pci(address), path)
        if driver is not None:
            self.bind(path, driver)
        if group is not None:
            self.join_group(path, group)
        return path

    def bind(self, path: str, driver: str) -> None:
        """Bind a device to a driver; those of VFIO make their folder."""
        self.write(f"bus/pci/drivers/{driver}/bind", "")
        self.link(f"{path}/driver", f"bus/pci/drivers/{driver}")
        if "vfio" in driver:
            self.write(f"{path}/vfio-dev/vfio0/uevent", "")

    def join_group(self, path: str, group: int, name: str | None = None) -> None:
        """Put a device into an IOMMU group."""
        folder = f"kernel/iommu_groups/{group}"
        self.link(f"{path}/iommu_group", folder)
        self.link(f"{folder}/devices/{Path(path).name}", path)
        if name is not None:
            self.write(f"{folder}/name", f"{name}\n")

    def populate_vfs(
        self,
        pf: str,
        addresses: Sequence[str],
        *,
        pci_class: str = "0x030000",
        driver: str | None = None,
        first_group: int | None = None,
    ) -> list[str]:
        """Make VFs of the physical function at path ``pf`` and return their paths."""
        paths = []
        for number, address in enumerate(addresses):
            group = None if first_group is None else first_group + number
            path = self.populate_pci(address, pci_class=pci_class, driver=driver, group=group)
            self.link(f"{path}/physfn", pf)
            self.link(f"{pf}/virtfn{number}", path)
            paths.append(path)
        return paths

    def populate_types(self, parent: str, types: Iterable[TypeFiles]) -> None:
        """Make the device at path ``parent`` a parent of mediated devices."""
        for kind in types:
            folder = f"{parent}/mdev_supported_types/{kind.id}"
            self.write(f"{folder}/create", "")
            (self.root / folder / "devices").mkdir()
            files = {
                "name": kind.name,
                "description": kind.description,
                "available_instances": kind.available,
                "device_api": kind.device_api,
            }
            for name, text in files.items():
                if text is not None:
                    self.write(f"{folder}/{name}", text if text.endswith("\n") else f"{text}\n")
        self.link(f"class/mdev_bus/{Path(parent).name}", parent)

    def populate_sample(self, name: str, types: Iterable[TypeFiles]) -> str:
        """Make one of the kernel's sample parents, which are no PCI, and return its path."""
        path = f"devices/virtual/{name}/{name}"
        self.write(f"{path}/uevent", "")
        self.link(f"{path}/subsystem", f"class/{name}")
        self.populate_types(path, types)
        return path

    def populate_mdev(
        self, parent: str, uuid: str, type_id: str | None, group: int | None = None
    ) -> str:
        """Make a mediated device and return its path; without a type its link is not there yet."""
        path = f"{parent}/{uuid}"
        self.write(f"{path}/remove", "")
        self.link(f"bus/mdev/devices/{uuid}", path)
        if type_id is not None:
            self.link(f"{path}/mdev_type", f"{parent}/mdev_supported_types/{type_id}")
        if group is not None:
            self.join_group(path, group, "vfio-noiommu")
        return path

    def populate_vendor(self, vf: str, creatable: str = L40S, current: str = "0") -> None:
        """Give a VF the files of NVIDIA's vendor interface."""
        self.write(f"{vf}/nvidia/creatable_vgpu_types", creatable)
        self.write(f"{vf}/nvidia/current_vgpu_type", f"{current}\n")

    def populate_node(self, number: int, cpus: str, kib: int) -> None:
        """Make a NUMA node."""
        folder = f"devices/system/node/node{number}"
        self.write(f"{folder}/cpulist", f"{cpus}\n")
        self.write(f"{folder}/meminfo", f"Node {number} MemTotal:       {kib} kB\n")


_FIELDS = {
    "name": "name",
    "available instances": "available",
    "available_instances": "available",
    "device api": "device_api",
    "device_api": "device_api",
    "description": "description",
}


def read_listing(text: str) -> dict[str, tuple[TypeFiles, ...]]:
    """The types by parent of what mdevctl lists, and of the captures that look like it."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    parent, kind, raw = "", "", False
    for line in text.splitlines():
        words = line.strip()
        key, colon, value = words.partition(":")
        if match := re.fullmatch(r"--- \S*/(\S+)/mdev_supported_types/(\S+)", line):
            parent, kind, raw = match[1], match[2], False
            found.setdefault(parent, {})[kind] = {}
        elif words.startswith("#"):
            kind, raw = ("", False) if words.startswith("#####") else (kind, raw)
        elif re.fullmatch(r"[0-9a-f]{4}:\S+\.[0-7]", words) and not line.startswith(" "):
            parent, raw = words, False
        elif re.fullmatch(r"  \S+-\S+", line):
            kind, raw = words, False
            found.setdefault(parent, {})[kind] = {}
        elif kind and raw and not line.startswith(" "):
            found[parent][kind]["description"] += f"{line}\n"
        elif kind and colon and key.split(" (")[0].lower() in _FIELDS:
            name = _FIELDS[key.split(" (")[0].lower()]
            raw = "(raw" in key
            if value.strip() != "(absent)":
                found[parent][kind][name] = "" if raw else value.strip()
    return {
        parent: tuple(
            TypeFiles(
                kind,
                files.get("name"),
                files.get("description"),
                files.get("available"),
                files.get("device_api"),
            )
            for kind, files in kinds.items()
        )
        for parent, kinds in found.items()
    }


def populate_listing(tree: Tree, text: str) -> dict[str, tuple[TypeFiles, ...]]:
    """Build the parents and types of a listing; PCI addresses become display controllers."""
    listing = read_listing(text)
    for parent, types in listing.items():
        if ":" in parent:
            tree.populate_types(tree.populate_pci(parent), types)
        else:
            tree.populate_sample(parent, types)
    return listing
