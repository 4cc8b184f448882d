"""Display controllers that are there for a screen and no GPU to hand out.

A server's management controller (BMC) shows the host's console through one; a virtual machine has
an emulated one. Their PCI class says nothing else than that of a GPU. Sources: the device tables of
the kernel's drivers (ast, mgag200, hibmc, bochs, cirrus, qxl, virtio-gpu, vmwgfx, vboxvideo,
hyperv_drm), pci.ids.
"""

from collections.abc import Mapping

_SERVER = "a server's management controller"
_EMULATED = "an emulator"

_VENDORS: Mapping[str, tuple[str, str]] = {
    "1a03": ("ASPEED", _SERVER),
    "18ca": ("XGI Volari", _SERVER),
}
"""Who makes nothing else."""

_DEVICES: Mapping[str, tuple[str, str]] = {
    **{
        f"102b:{device}": ("Matrox G200e", _SERVER)
        for device in ["0522", "0524", "0530", "0532", "0533", "0534", "0536", "0538", "053a"]
    },
    "19e5:1711": ("HiSilicon hibmc", _SERVER),
    "1002:515e": ("ATI ES1000", _SERVER),
    "1002:5969": ("ATI ES1000", _SERVER),
    "1234:1111": ("standard VGA", _EMULATED),
    "1013:00b8": ("Cirrus", _EMULATED),
    "1b36:0100": ("QXL", _EMULATED),
    "1af4:1050": ("virtio-gpu", _EMULATED),
    "15ad:0405": ("VMware SVGA", _EMULATED),
    "15ad:0406": ("VMware SVGA", _EMULATED),
    "80ee:beef": ("VirtualBox", _EMULATED),
    "1414:5353": ("Hyper-V", _EMULATED),
}

_MAKERS_OF_GPUS = ("1002", "19e5")
"""Who asks for a GPU of theirs does not mean one of these screens."""


def describe_screen(vendor: str, device: str) -> str:
    """Return what a display controller is instead of a GPU; "" where it may be one."""
    found = _VENDORS.get(vendor) or _DEVICES.get(f"{vendor}:{device}")
    return f"the screen of {found[1]} ({found[0]}) and no GPU" if found else ""


def means_screen(vendor: str, device: str) -> bool:
    """Tell whether a request for a vendor, or a vendor's device, may mean such a screen."""
    return bool(device) or (vendor != "" and vendor not in _MAKERS_OF_GPUS)
