"""Whether a run in a mode can begin: what it needs beside the VM's file is there."""

from arcsup.errors import Refused
from arcsup.places import Places
from arcsup.plan.mode import Mode, Purpose
from arcsup.vm.disks import resolve_image
from arcsup.vm.resources import GUEST_TOOLS


def check_mode(mode: Mode, places: Places) -> None:
    """Raise Refused for what a run in ``mode`` lacks, before anything is recorded or made."""
    if mode.purpose is Purpose.PREINSTALL:
        image = resolve_image(GUEST_TOOLS, places.images)
        if not image.is_file():
            raise Refused(f"there is no guest-tools ISO {image}", "arcsup guest-tools build")
