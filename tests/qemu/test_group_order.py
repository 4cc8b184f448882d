"""When a QEMU gets into its control group: its sockets are for ever of the group they began in."""

import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import define, evolve, field

from arcsup.errors import Transient
from arcsup.host.cgroups import Limits
from arcsup.model import VmName
from arcsup.vm.launch import start_qemu
from arcsup.vm.process import end_process
from arcsup.vm.supervise import begin
from tests.small_host import SmallHost


@define
class Watched:
    """A way to control groups that sees what a program is when it is put into one."""

    programs: list[str] = field(factory=list)

    async def enclose(self, name: str, pids: Sequence[int], limits: Limits) -> str:
        self.programs.append(Path(f"/proc/{pids[0]}/comm").read_text().strip())
        raise Transient("there is none")


@pytest.mark.parametrize(
    ("more", "first"),
    [
        ("networks: [{}]", False),
        ("networks: [{forwards: ['udp:127.0.0.1:PORT:53']}]", True),
        ("qemu: {args: [-no-fd-bootchk]}", True),
    ],
)
async def test_a_qemu_that_makes_sockets_is_in_its_group_before_it_begins(
    more: str, first: bool, short_dir: Path
) -> None:
    host, watched = SmallHost(short_dir), Watched()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        more = more.replace("PORT", str(free.getsockname()[1]))
    host.drop("web", f"memory: 64\naccel: tcg\n{more}\n")
    await host.plan()
    managed = host.fleet.vms[VmName("web")]
    begin(managed, "a test")

    process = await start_qemu(managed, evolve(host.fleet.workshop, control_groups=watched))

    try:
        # Before it begins it is the shell that waits at its gate.
        assert watched.programs == (["sh"] if first else [])
    finally:
        await end_process(process, grace=5)
        process.close()
