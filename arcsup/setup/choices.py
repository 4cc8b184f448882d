"""What only the user can decide about setup."""

from enum import StrEnum

from attrs import frozen


class GpuSharing(StrEnum):
    """How Intel's graphics is to be shared: GVT-g (to Comet Lake), SR-IOV (from Tiger Lake on)."""

    GVT_G = "gvt-g"
    SRIOV = "sriov"


@frozen
class Choices:
    """``gpu_sharing`` None leaves Intel's graphics as it is; ``hugepages`` is in MiB, 0: none."""

    gpu_sharing: GpuSharing | None = None
    hugepages: int = 0

    @property
    def options(self) -> tuple[str, ...]:
        """The options of ``arcsup setup`` that say the same."""
        sharing = ("--gpu-sharing", self.gpu_sharing.value) if self.gpu_sharing else ()
        return (*sharing, *(("--hugepages", f"{self.hugepages}MiB") if self.hugepages else ()))
