"""What a VM's programs may take together: more than a sound one needs."""

from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from arcsup.model import (
    Cpus,
    Disk,
    GpuKind,
    GpuRequest,
    LookingGlass,
    MiB,
    QemuOptions,
    Share,
    Vm,
)
from arcsup.vm.limits import BASE, FOR_GL, FOR_TCG, PER_GPU, limits_of
from tests.vm_samples import find_resources, make_vm

vms = st.builds(
    lambda memory, cores, disks, gpus, shares: evolve(
        make_vm("any"),
        memory_mib=MiB(memory),
        cpus=Cpus(cores=cores),
        disks=tuple(Disk(f"disk{index}") for index in range(disks)),
        gpus=tuple(GpuRequest(GpuKind.VGPU, count=count) for count in gpus),
        shares=tuple(Share(f"/srv/{index}", f"tag{index}") for index in range(shares)),
    ),
    memory=st.integers(1, 2**22),
    cores=st.integers(1, 256),
    disks=st.integers(0, 4),
    gpus=st.lists(st.integers(1, 4), max_size=2),
    shares=st.integers(0, 2),
)


def memory_of(vm: Vm) -> int:
    """Return the limit in MiB."""
    limits = limits_of(vm, find_resources(vm))
    assert limits.memory is not None
    return limits.memory // 2**20


@given(vms, vms)
def test_more_never_gets_less(one: Vm, other: Vm) -> None:
    both = evolve(
        one,
        memory_mib=MiB(one.memory_mib + other.memory_mib),
        cpus=Cpus(cores=one.cpus.cores + other.cpus.cores),
        gpus=one.gpus + other.gpus,
    )
    assert memory_of(one) >= one.memory_mib + BASE
    assert memory_of(both) > memory_of(one)
    assert limits_of(one, find_resources(one)).tasks < limits_of(both, find_resources(both)).tasks


def test_what_needs_memory_beside_the_guests_gets_it() -> None:
    vm = evolve(make_vm("plain"), memory_mib=MiB(4096), gpus=())
    plain = memory_of(vm)
    assert memory_of(evolve(vm, gpus=(GpuRequest(GpuKind.VIRTIO),))) == plain + PER_GPU
    glass = evolve(vm, looking_glass=LookingGlass())
    assert memory_of(glass) > plain
    host = find_resources(vm)
    drawing = evolve(host, render_node=Path("/dev/dri/renderD128"))
    assert limits_of(vm, drawing).memory == (plain + FOR_GL) * 2**20
    assert limits_of(vm, evolve(host, accel="kvm")).memory == (plain - FOR_TCG) * 2**20


@pytest.mark.parametrize(
    "args",
    [
        ("-m", "8G"),
        ("-object", "memory-backend-ram,id=more,size=8G"),
        ("-accel", "tcg,tb-size=8192"),
    ],
)
def test_memory_that_only_qemu_knows_of_has_no_limit(args: tuple[str, ...]) -> None:
    vm = evolve(make_vm("own"), qemu=QemuOptions(args=args))
    limits = limits_of(vm, find_resources(vm))
    assert limits.memory is None
    assert limits.tasks > 0
