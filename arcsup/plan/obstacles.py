"""Why a card gives nothing at all of a kind, whatever is asked for: policy, state, safety."""

from collections.abc import Iterable, Mapping

from attrs import frozen

from arcsup.devices import Backend, Card, Function
from arcsup.model import GpuKind
from arcsup.plan.assignment import CardPolicy, Policy, WaitFor
from arcsup.plan.functions import describe_function
from arcsup.plan.offers import BACKENDS

EXCLUDED = "excluded by `gpus` in arcsup.yaml"

QUARANTINED = "quarantined after failures; `arcsup gpu unquarantine` lifts that"


@frozen
class Obstacle:
    """``because`` a sentence about the card; ``waiting_for`` what would lift it by itself."""

    because: str
    waiting_for: WaitFor | None = None


@frozen
class PolicyTable:
    """The operator's entries by what they match, so that a thousand of them cost no more."""

    entries: Mapping[str, tuple[int, CardPolicy]]

    def entry_of(self, card: Card) -> CardPolicy | None:
        """Return the first entry that matches a card."""
        keys = (card.address, card.vendor, f"{card.vendor}:{card.device}", "*")
        found = [self.entries[key] for key in keys if key in self.entries]
        return min(found, key=lambda entry: entry[0])[1] if found else None

    def excludes(self, address: str) -> bool:
        """Tell whether an entry excludes just the function at an address.

        It may be a virtual function, or one that would go along with a card: what is said of the
        card itself is said of them, too, but no entry for the card gives them free.
        """
        found = self.entries.get(address)
        return found is not None and found[1].exclude


def make_policy_table(entries: Iterable[CardPolicy]) -> PolicyTable:
    """Return a table of entries in which the first match counts."""
    table: dict[str, tuple[int, CardPolicy]] = {}
    for number, entry in enumerate(entries):
        table.setdefault(entry.match, (number, entry))
    return PolicyTable(table)


def find_obstacle(
    card: Card, kind: GpuKind, policy: Policy, table: PolicyTable, *, named: bool
) -> Obstacle | None:
    """Return why a card gives nothing of a kind. ``named``: the request names its address."""
    if bar := find_bar(card, policy, table):
        return bar
    if kind is GpuKind.PASSTHROUGH:
        use = None if named else find_use(card, policy, table)
        return _excluded_companion(card, table) or _passthrough_obstacle(card, named=named) or use
    if not card.usable:
        return Obstacle(card.why or "not usable", None if card.driver else WaitFor.DRIVER)
    if any(backend in BACKENDS[kind] for backend in card.backends):
        return _vf_obstacle(card, policy, table) if kind is GpuKind.VF else _vgpu_obstacle(card)
    return _missing_backend(card, kind)


def find_bar(card: Card, policy: Policy, table: PolicyTable) -> Obstacle | None:
    """Return why nothing of a card may be given to anybody, nor kept by one who does not run."""
    entry = table.entry_of(card)
    if entry is not None and entry.exclude:
        return Obstacle(EXCLUDED)
    if because := policy.lost.get(card.address):
        return Obstacle(f"it is lost: {because}", WaitFor.CARD)
    if card.address in policy.busy:
        return Obstacle(policy.busy[card.address], WaitFor.VFS)
    if card.address in policy.quarantined:
        return Obstacle(QUARANTINED)
    return _find_debt(card.address, policy)


def find_use(card: Card, policy: Policy, table: PolicyTable) -> Obstacle | None:
    """Return what of the host uses a card: a named one is only taken from it by ``force``."""
    along = {it.address: describe_function(it) for it in find_companions(card, table)}
    names = {card.address: card.address} | along
    used = [f"{name} {policy.used[it]}" for it, name in names.items() if it in policy.used]
    if not used:
        return None
    return Obstacle(f"{'; '.join(used)}; `force: true` takes it all the same", WaitFor.CAPACITY)


def find_companions(card: Card, table: PolicyTable) -> tuple[Function, ...]:
    """Return what goes along with a whole card.

    What the operator excludes stays where the kernel lets it: in an IOMMU group of its own.
    """
    own = card.group.number if card.group else None
    return tuple(it for it in card.companions if it.group == own or not table.excludes(it.address))


def find_mates_obstacle(card: Card) -> Obstacle | None:
    """Return that a card goes only to who gets others of its IOMMU group, too."""
    if card.group is None or not card.group.mates:
        return None
    mates = ", ".join(card.group.mates)
    why = f"{'; '.join(card.group.blockers)} (IOMMU group {card.group.number})"
    return Obstacle(f"{why}: it goes only to a VM that gets {mates} as a whole, too")


def _find_debt(address: str, policy: Policy) -> Obstacle | None:
    if owner := policy.owed.get(address):
        return Obstacle(f"VM {owner} has yet to give it back", WaitFor.CAPACITY)
    return None


def _vgpu_obstacle(card: Card) -> Obstacle | None:
    if card.types:
        return None
    if card.vfs_total and not card.vfs:
        return Obstacle("its virtual functions are not enabled", WaitFor.VFS)
    # A full card of NVIDIA's vendor VFIO lists no type at all.
    return Obstacle("its driver lists no vGPU type now", WaitFor.CAPACITY)


def _missing_backend(card: Card, kind: GpuKind) -> Obstacle:
    what = "vGPUs" if kind is GpuKind.VGPU else "virtual functions"
    if kind is GpuKind.VF and not card.vfs_total:
        return Obstacle("it has no SR-IOV")
    if card.driver is None:
        return Obstacle(f"it offers no {what}: no driver has it", WaitFor.DRIVER)
    if card.vfs_total and not card.vfs:
        return Obstacle("its virtual functions are not enabled", WaitFor.VFS)
    return Obstacle(f"it offers no {what} with driver {card.driver}")


def _vf_obstacle(card: Card, policy: Policy, table: PolicyTable) -> Obstacle | None:
    if not card.vfs:
        return Obstacle("its virtual functions are not enabled", WaitFor.VFS)
    reasons = [vf_obstacle(vf, card, policy, table) for vf in card.vfs]
    found = [reason for reason in reasons if reason is not None]
    return found[0] if len(found) == len(reasons) else None


def vf_obstacle(
    vf: Function, card: Card, policy: Policy, table: PolicyTable, *, named: bool = False
) -> Obstacle | None:
    """Return why a virtual function can be given to nobody, or only to who names it."""
    if table.excludes(vf.address):
        return Obstacle(f"{vf.address} is {EXCLUDED}")
    if because := policy.lost.get(vf.address):
        return Obstacle(f"it is lost: {because}", WaitFor.CARD)
    if vf.address in policy.quarantined:
        return Obstacle(QUARANTINED)
    if debt := _find_debt(vf.address, policy):
        return debt
    if vf.group is None:
        return Obstacle("it has no IOMMU group: the IOMMU is off (intel_iommu=on, amd_iommu=on)")
    if vf.blockers:
        return Obstacle("; ".join(vf.blockers))
    pieces = [p for p in card.slices if vf.address in (p.id, p.parent)]
    if any(piece.ours for piece in pieces):
        return Obstacle("all are taken", WaitFor.CAPACITY)
    if any(piece.holders or piece.backend is not Backend.SRIOV for piece in pieces):
        return Obstacle("in foreign hands", WaitFor.CAPACITY)
    if not named and (pieces or (vf.driver is not None and "vfio" in vf.driver)):
        # Bound at boot, as i915-sriov-dkms advises, or by another manager, as with whole cards.
        return Obstacle(
            f"bound to {vf.driver}, and not by arcsup; a request whose `address` is the virtual "
            "function's own takes it, or `arcsup gpu adopt`",
            WaitFor.CAPACITY,
        )
    return None


def _excluded_companion(card: Card, table: PolicyTable) -> Obstacle | None:
    along = find_companions(card, table)
    found = [each.address for each in along if table.excludes(each.address)]
    return Obstacle(f"{found[0]}, which goes along with it, is {EXCLUDED}") if found else None


def _passthrough_obstacle(card: Card, *, named: bool) -> Obstacle | None:
    if Backend.PASSTHROUGH not in card.backends:
        return Obstacle("it cannot be handed out as a whole")
    if card.group is None:
        return Obstacle("it has no IOMMU group: the IOMMU is off (intel_iommu=on, amd_iommu=on)")
    if card.group.blockers and not card.group.mates:
        return Obstacle("; ".join(card.group.blockers))
    foreign = [p for p in card.slices if p.backend is Backend.PASSTHROUGH and not p.ours]
    if any(piece.holders for piece in foreign):
        return Obstacle("in use by somebody else", WaitFor.CAPACITY)
    if foreign and not named:
        # Bound at boot, as for LibVF.IO, or by another manager: only the operator can tell.
        return Obstacle(
            f"bound to {card.driver}, and not by arcsup; `address` in the request takes it"
        )
    if not named and card.in_use_by_host:
        return Obstacle(
            f"in use by the host ({card.in_use_by_host}); `address` in the request "
            "takes it all the same"
        )
    if not named and card.boot_vga:
        return Obstacle("the host's boot display; `address` in the request takes it all the same")
    if card.vfs:
        return Obstacle("its virtual functions are enabled")
    return None
