"""A host in a test's folder: device tree, VM files and journal, and the fleet that reads them."""

from pathlib import Path

from attrs import define, field

from arcsup.allocation import Allocation
from arcsup.events.dirty import Bell, Dirty
from arcsup.fleet import Fleet
from arcsup.gpu_operator import GpuOperator
from arcsup.look import DeviceLook
from arcsup.model import LastExit, MiB, VmName
from arcsup.places import Places
from arcsup.plan.assignment import Policy
from arcsup.text_reader import TextReader
from arcsup.vm.managed import Workshop
from arcsup.vm.record import RecordStore
from tests.trees import MBOCHS, Tree

MACHINE = "11111111-2222-3333-4444-555555555555"
BOOT = "66666666-7777-8888-9999-000000000000"


def places_in(top: Path) -> Places:
    """Return the places of a daemon that has a folder for itself."""
    return Places(
        config=top / "arcsup.yaml",
        vms=top / "vms",
        run=top / "run",
        state=top / "state",
        log=top / "log",
        sysfs=top / "sys",
        system=False,
    )


@define(eq=False)
class SmallHost:
    """``told`` has the kind of each event; the tree has the sample parent mbochs."""

    top: Path
    told: list[str] = field(factory=list)
    tree: Tree = field(init=False)
    places: Places = field(init=False)
    fleet: Fleet = field(init=False)

    def __attrs_post_init__(self) -> None:
        top = self.top
        self.places = places_in(top)
        self.places.vms.mkdir(exist_ok=True)
        if not self.places.sysfs.exists():
            self.tree = Tree(self.places.sysfs)
            self.tree.populate_sample("mbochs", MBOCHS)
        else:
            self.tree = Tree(self.places.sysfs)
        self.open()

    def open(self) -> None:
        """Begin anew, as a daemon does that was started again."""
        allocation = Allocation(DeviceLook(self.places.sysfs), Policy())
        self.fleet = Fleet(self._workshop(), Bell(), 8, allocation)
        self.fleet.memory = lambda: MiB(1 << 20)
        allocation.look.owners = self.fleet.slice_owners
        self.fleet.load_records()

    def _workshop(self) -> Workshop:
        return Workshop(
            places=self.places,
            machine_id=MACHINE,
            boot_id=BOOT,
            records=RecordStore(self.places.state / "vms", self.places.run_of),
            tell=self._tell,
            changed=lambda: None,
            became_ready=lambda _vm, _seconds: None,
            ended=self._ended,
            device_failed=lambda choice: self.fleet.allocation.note_failure(choice),
        )

    def _tell(self, vm: VmName | None, kind: str, message: str, **data: object) -> None:
        self.told.append(kind)

    def _ended(self, vm: VmName, last_exit: LastExit, *, comes_back: bool) -> None:
        self.told.append("ended")

    @property
    def operator(self) -> GpuOperator:
        return GpuOperator(self.fleet, Dirty(), TextReader(MACHINE))

    def drop(self, name: str, text: str) -> Path:
        """Write a VM file."""
        file = self.places.vms / f"{name}.yaml"
        file.write_text(text)
        return file

    async def plan(self) -> None:
        """Read the files, look at the devices and choose, as a pass of the daemon does."""
        await self.fleet.read_files()
        await self.fleet.allocation.observe()
        self.fleet.allocation.assign(self.fleet.vms.values(), self.fleet.look().up)


async def small_host_with_web(top: Path, more: str = "") -> SmallHost:
    """Return a host that has one small VM file, web, and has planned once."""
    host = SmallHost(top)
    host.drop("web", f"memory: 64\n{more}")
    await host.plan()
    return host
