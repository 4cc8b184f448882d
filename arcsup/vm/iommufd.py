"""iommufd: one object of a QEMU, by which it has all its host devices where the kernel can.

Every VM has it, so that the first GPU which comes to it while it runs can go the same way.
Sources: qemu-doc, "-object iommufd"; docs/devel/vfio-iommufd.rst in QEMU (8.2).
"""

import os
from contextlib import ExitStack

from attrs import frozen

from arcsup.host.accounts import Account
from arcsup.host.vfio_nodes import IOMMU, offers_iommufd
from arcsup.model import Argv, Vm
from arcsup.places import Places
from arcsup.vm.capabilities import find_qemu, probe_capabilities
from arcsup.vm.record import Launch

OBJECT = "iommufd0"
"""Its id. Not "iommufd": devices have a property of that name, and QEMU finds two of it then."""


@frozen
class Iommufd:
    """``fd`` is an open /dev/iommu that QEMU inherits; None: it opens that itself, when it must."""

    fd: int | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What QEMU inherits."""
        return () if self.fd is None else (self.fd,)


async def can_use_iommufd(vm: Vm, places: Places) -> bool:
    """Tell whether a VM's QEMU and this host's kernel have iommufd. Raises Terminal, Transient."""
    capabilities = await probe_capabilities(find_qemu(vm), places.state / "cache")
    return "iommufd" in capabilities.objects and offers_iommufd()


def open_iommufd(account: Account | None, opened: ExitStack) -> Iommufd:
    """Open /dev/iommu for a QEMU that is ``account``; None can do that itself.

    It is not lent: what one VM does with it is its own, but the node is everybody's.
    """
    if account is None:
        return Iommufd()
    descriptor = os.open(IOMMU, os.O_RDWR | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return Iommufd(descriptor)


def iommufd_args(iommufd: Iommufd | None) -> Argv:
    """Return the object's option; nothing where devices go by their groups."""
    if iommufd is None:
        return ()
    fd = "" if iommufd.fd is None else f",fd={iommufd.fd}"
    return ("-object", f"iommufd,id={OBJECT}{fd}")


def was_launched_with_iommufd(launch: Launch | None) -> bool:
    """Tell whether a running QEMU has the object."""
    return launch is not None and any(
        word.partition(",fd=")[0] == f"iommufd,id={OBJECT}" for word in launch.argv
    )
