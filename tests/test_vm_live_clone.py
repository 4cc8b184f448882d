"""What a QEMU says of its disks and jobs: a guest may have broken out of it."""

from pathlib import Path

import pytest

from arcsup.errors import Terminal
from arcsup.model import VmName
from arcsup.plan.lifecycle import Phase
from arcsup.vm.live_clone import NAME, clone_running, end_left_clone
from arcsup.vm.managed import ManagedVm
from arcsup.vm.qmp import NonsenseError
from tests.qmp_answers import Answers
from tests.small_host import SmallHost

JOB = {"id": NAME, "status": "concluded", "current-progress": 0, "total-progress": 0}


@pytest.fixture
async def host(tmp_path: Path) -> SmallHost:
    host = SmallHost(tmp_path)
    host.drop("web", "memory: 64\ndisks: [{path: a.qcow2}]\n")
    await host.plan()
    return host


@pytest.fixture
def vm(host: SmallHost) -> ManagedVm:
    vm = host.fleet.vms[VmName("web")]
    vm.adopted = True
    return vm


@pytest.mark.parametrize("jobs", [None, 7, {}, [7], [{}], [{"id": 7}], [{"id": NAME}],
                                  [{**JOB, "status": []}], [{**JOB, "error": {}}],
                                  [{**JOB, "total-progress": "1"}],
                                  [{**JOB, "current-progress": 10**400}]])  # fmt: skip
async def test_jobs_that_make_no_sense_are_an_error_of_the_monitors(
    host: SmallHost, vm: ManagedVm, jobs: object
) -> None:
    vm.qmp = Answers(query_jobs=jobs)
    with pytest.raises(NonsenseError):
        await end_left_clone(vm, host.fleet.workshop)


@pytest.mark.parametrize("sets", [None, 7, [7], [{}], [{"fds": 7}], [{"fds": [{"opaque": NAME}]}]])
async def test_descriptors_that_make_no_sense_are_an_error_of_the_monitors(
    host: SmallHost, vm: ManagedVm, sets: object
) -> None:
    vm.qmp = Answers(query_jobs=[], query_fdsets=sets, blockdev_del={})
    with pytest.raises(NonsenseError):
        await end_left_clone(vm, host.fleet.workshop)


@pytest.mark.parametrize("image", [None, 7, {}, {"virtual-size": "1"}, {"virtual-size": -1},
                                   {"virtual-size": 1, "actual-size": []},
                                   {"virtual-size": 1, "backing-image": {"actual-size": -1}}]
)  # fmt: skip
async def test_a_disk_that_is_told_of_in_nonsense_is_not_copied(
    host: SmallHost, vm: ManagedVm, image: object
) -> None:
    vm.running, vm.phase = vm.vm, Phase.RUNNING
    source = host.places.images / "a.qcow2"
    source.parent.mkdir(parents=True)
    source.touch()
    nodes = ["disk0", {}, {"node-name": "disk0", "image": image}]
    vm.qmp = Answers(query_named_block_nodes=nodes)
    with pytest.raises(Terminal, match="QEMU cannot copy"):
        await clone_running(
            vm, host.fleet.workshop, source, source.with_name("b.qcow2"), lambda _percent: None
        )
