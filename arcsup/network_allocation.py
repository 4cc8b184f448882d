"""Which virtual functions of network cards the VMs get, beside the GPUs that they were given."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from attrs import evolve

from arcsup.devices import Backend, Inventory
from arcsup.host.owned import SliceChoice
from arcsup.model import NetworkType, Vm, VmName
from arcsup.plan.assignment import Assignment, Place, Policy
from arcsup.plan.lifecycle import Phase
from arcsup.plan.network_vfs import NetworkChoice, NetworkRequest, assign_network_vfs
from arcsup.spec.identity import derive_mac
from arcsup.vm.live_gpus import wants_change
from arcsup.vm.managed import ManagedVm

NetworkOutcomes = Mapping[Place, NetworkChoice | str]
"""What each entry of ``networks`` that asks for a virtual function gets, or why nothing."""


FindHeld = Callable[[Sequence[ManagedVm], Sequence[NetworkRequest]], Mapping[Place, str]]
"""Returns the address of the virtual function that each entry has already."""


def allocate_networks(
    vms: Iterable[ManagedVm],
    assignment: Assignment,
    inventory: Inventory,
    policy: Policy,
    held: FindHeld,
) -> NetworkOutcomes:
    """Choose for the VMs that get the GPUs that they need, near to those."""
    asking = [vm for vm in vms if not assignment.obstacles_of(vm.name)]
    requests = [request for vm in asking for request in _requests(vm, assignment)]
    return assign_network_vfs(requests, inventory, policy, held(asking, requests))


def networks_held(
    vms: Sequence[ManagedVm], _requests: Sequence[NetworkRequest]
) -> Mapping[Place, str]:
    """Return what entries have by the journal, or are about to have."""
    return {(vm.name, it.slot): it.id for vm in vms for it in vm.claims if it.mac is not None}


def networks_held_on(
    inventory: Inventory, _vms: Sequence[ManagedVm], requests: Sequence[NetworkRequest]
) -> Mapping[Place, str]:
    """Return what entries have by an inventory, which tells the VM and not the entry."""
    theirs = [(card, vf) for card in inventory.network_cards for vf in card.vfs if vf.vm]
    held: dict[Place, str] = {}
    # Who names a function has it; the others have the rest, in their order.
    for request in sorted(requests, key=lambda it: (it.parent is None, it.place)):
        for card, vf in theirs:
            if vf.vm == request.place[0] and request.parent in (None, card.address, vf.address):
                held[request.place] = vf.address
                theirs.remove((card, vf))
                break
    return held


def as_slice_choices(name: VmName, outcomes: NetworkOutcomes) -> Iterator[SliceChoice]:
    """Yield what a VM gets, as the back ends take it."""
    for (owner, number), choice in outcomes.items():
        if owner == name and isinstance(choice, NetworkChoice):
            yield SliceChoice(
                backend=Backend.SRIOV,
                slot=number,
                card=choice.card,
                parent=choice.vf,
                type=None,
                id=choice.vf,
                mac=choice.mac,
            )


def version_of(vm: ManagedVm) -> Vm:
    """A VM that runs keeps what it runs with, whatever its file says by now, and may get GPUs."""
    if vm.running is None:
        return vm.vm
    more = wants_change(vm) and len(vm.vm.gpus) > len(vm.running.gpus)
    return evolve(vm.running, gpus=vm.vm.gpus) if more else vm.running


def _requests(vm: ManagedVm, assignment: Assignment) -> Iterator[NetworkRequest]:
    version = version_of(vm)
    gpus = assignment.choices_of(vm.name).values()
    node = next((gpu.numa_node for gpu in gpus if gpu.numa_node is not None), None)
    node = version.numa if isinstance(version.numa, int) else node
    for number, network in enumerate(version.networks):
        if network.type is NetworkType.VF:
            mac = network.mac or derive_mac(version.uuid, number)
            runs = vm.phase is not Phase.DOWN
            yield NetworkRequest((vm.name, number), mac, network.parent, node, in_use=runs)
