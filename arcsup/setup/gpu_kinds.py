"""What doctor and setup know of GPU models and drivers beyond what sysfs tells."""

import re

from arcsup.devices import Card, SliceType
from arcsup.setup.host import Host

NVIDIA, INTEL, AMD = "10de", "8086", "1002"
"""PCI vendor ids."""

_GVTG_PREFIXES = ("16", "19", "59", "87", "3e", "9b")
_GVTG_BROXTON = frozenset({"0a84", "1a84", "1a85", "5a84", "5a85"})
"""Intel's graphics with GVT-g, Broadwell to Comet Lake.

Sources: is_supported_device() in drivers/gpu/drm/i915/intel_gvt.c, ids in i915_pciids.h.
"""

_MIG_NAME = re.compile(r"-\d+-\d+[A-Z]")
"""``A100-1-5C``: GPU instances, then GiB (NVIDIA vGPU guide, types of MIG-backed vGPUs)."""


def has_gvtg(card: Card) -> bool:
    """Tell whether the card is one that GVT-g was made for."""
    known = card.device.startswith(_GVTG_PREFIXES) or card.device in _GVTG_BROXTON
    return card.vendor == INTEL and known


def is_mig_backed(kind: SliceType) -> bool:
    """Tell whether a vGPU type lives on a GPU instance."""
    return bool(_MIG_NAME.search(kind.name))


def tell_card(card: Card) -> str:
    """Return a card as people know it: address, name, driver."""
    name = card.subsystem_name or card.name
    shown = card.address if name == card.address else f"{card.address} {name}"
    return f"{shown} ({card.driver or 'no driver'})"


def read_parameter(host: Host, module: str, name: str) -> str:
    """Return a parameter of a loaded module, "" where it has none of that name."""
    file = host.sysfs / "module" / module / "parameters" / name
    try:
        return file.read_text().strip()
    except OSError:
        return ""
