"""Entries of arcsup.yaml that are of no effect here: looked for without a daemon."""

from pathlib import Path

from arcsup.host.inventory import observe_inventory
from arcsup.host.surroundings import look_around
from arcsup.host.sysfs import Sysfs
from arcsup.host.usb import observe_usb
from arcsup.plan.entries import find_void_gpu_entries, find_void_usb_entries
from arcsup.spec.config import Config, place_entries
from arcsup.spec.faults import Fault


def find_void_gpus(config: Config, file: Path, root: Path) -> tuple[Fault, ...]:
    """Return what of ``gpus`` counts for nothing on the host whose device tree is at ``root``.

    Nothing where there is no device tree to compare with.
    """
    if not config.gpus or not root.is_dir():
        return ()
    around = look_around(root, also=frozenset(entry.match for entry in config.gpus))
    inventory = observe_inventory(Sysfs(root), around)
    return place_entries(find_void_gpu_entries(inventory, config.gpus), file, config.gpus)


def find_void_usb(config: Config, file: Path, root: Path) -> tuple[Fault, ...]:
    """Return what of ``usb`` counts for nothing that is plugged in now."""
    if not config.usb or not root.is_dir():
        return ()
    devices = observe_usb(Sysfs(root))
    return place_entries(find_void_usb_entries(devices, config.usb), file, config.usb)
