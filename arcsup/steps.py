"""What a pass made now would do, in words: the actions, the slices that they take, who waits."""

from collections.abc import Iterator

from arcsup.devices import Backend, Card
from arcsup.fleet import Fleet, View
from arcsup.model import Step, VmName
from arcsup.plan.assignment import Choice, Refusal
from arcsup.plan.entries import find_void_gpu_entries
from arcsup.plan.functions import describe_function
from arcsup.plan.lifecycle import Phase
from arcsup.plan.network_vfs import NetworkChoice
from arcsup.plan.pci_classes import describe_missing_reset
from arcsup.plan.plan import (
    Action,
    ChangeGpus,
    ChangeMedia,
    ForgetVm,
    ReleaseDevices,
    StartVm,
    StopVm,
    judge,
    plan,
)
from arcsup.spec.config import place_entries

_VERBS: dict[type[Action], str] = {
    StartVm: "start",
    StopVm: "stop",
    ChangeMedia: "change",
    ChangeGpus: "change",
    ForgetVm: "forget",
    ReleaseDevices: "release",
}


def list_steps(fleet: Fleet) -> list[Step]:
    """Return the steps of the next pass; ``wait`` and ``omit`` say what cannot be had, and why.

    ``warn`` says which entry of arcsup.yaml is of no effect here.
    """
    view = fleet.look()
    steps: list[Step] = []
    for action in plan(view.wanted, view.seen, view.host, view.now):
        if isinstance(action, StartVm):
            steps += _takes(fleet, action.name)
        verb = _VERBS[type(action)]
        steps.append(Step(verb, action.name, action.because))
    return [*steps, *_waits(view), *_warnings(fleet)]


def _takes(fleet: Fleet, name: VmName) -> Iterator[Step]:
    """Yield what a VM that starts gets of the host's devices, and what it goes without."""
    for (owner, slot), outcome in fleet.allocation.assignment.outcomes.items():
        if owner != name:
            continue
        what = f"gpus[{slot}] of {name}"
        if isinstance(outcome, Refusal):
            yield Step("omit", what, str(outcome))
        elif not outcome.exists:
            makes = outcome.backend in (Backend.MDEV, Backend.VENDOR_VFIO)
            because = f"{what}: {_because(fleet, outcome)}"
            yield Step("make" if makes else "bind", _describe(outcome), because)
    for (owner, number), chosen in fleet.allocation.networks.items():
        if owner == name and isinstance(chosen, NetworkChoice) and not chosen.kept:
            yield Step("bind", chosen.vf, f"networks[{number}] of {name}")


def _because(fleet: Fleet, choice: Choice) -> str:
    words = [choice.because]
    if choice.backend in (Backend.PASSTHROUGH, Backend.SRIOV):
        words += _about_functions(_find_card(fleet, choice.card), choice)
    if choice.force:
        words.append("whatever of the host uses it (force)")
    return "; ".join(words)


def _about_functions(card: Card | None, choice: Choice) -> Iterator[str]:
    """Yield what goes along, what stays, and what cannot be reset."""
    told = {it.address: describe_function(it) for it in card.companions} if card else {}
    if along := ", ".join(told.get(address, address) for address in choice.companions):
        yield f"along with it go {along}"
    if card is None:
        return
    for function in card.staying if choice.backend is Backend.PASSTHROUGH else ():
        yield f"{describe_function(function)} stays: {', '.join(function.blockers)}"
    taken = {choice.id, *choice.companions}
    if missing := describe_missing_reset([it for it in card.without_reset if it in taken]):
        yield missing


def _find_card(fleet: Fleet, address: str) -> Card | None:
    cards = fleet.allocation.inventory.cards if fleet.allocation.inventory else ()
    return next((card for card in cards if card.address == address), None)


def _warnings(fleet: Fleet) -> Iterator[Step]:
    allocation = fleet.allocation
    if allocation.inventory is None:
        return
    found = find_void_gpu_entries(allocation.inventory, allocation.policy.cards)
    file = fleet.workshop.places.config
    for it in place_entries(found, file, allocation.policy.cards):
        yield Step("warn", f"{it.file}:{it.line}:{it.column}", f"{it.path}: {it.message}")


def _describe(choice: Choice) -> str:
    if choice.type is None:
        return choice.id
    name = f" ({choice.type_name})" if choice.type_name not in ("", choice.type) else ""
    return f"{choice.type}{name} on {choice.parent}"


def _waits(view: View) -> Iterator[Step]:
    for name in sorted(view.wanted):
        it = view.seen.get(name)
        if it is None or it.phase is Phase.DOWN:
            verdict = judge(name, view.wanted, view.seen, view.host, view.now)
            if verdict.up and verdict.blocked:
                yield Step("wait", name, verdict.blocked.removeprefix("waiting for "))
