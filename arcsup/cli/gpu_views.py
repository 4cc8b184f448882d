"""The long views of GPUs: the tree by NUMA node and card, and one card in full."""

from collections.abc import Iterator, Sequence

from arcsup.cli.fullness import Fullness, measure_fullness
from arcsup.cli.output import measure, paint, plain
from arcsup.control.shapes import (
    FunctionJson,
    GpuJson,
    GpuSliceJson,
    GpuTypeJson,
    InventoryJson,
)
from arcsup.plan.pci_classes import describe_class, describe_missing_reset

_LABEL_WIDTH = 12
_NO_NODE = 1 << 30

Branch = tuple[str, list["Branch"]]
"""A line, and the branches below it."""


def print_tree(seen: InventoryJson) -> None:
    """Write the host's cards by NUMA node, with what is cut from each."""
    cpus = {node["id"]: node["cpus"] for node in seen["numa"]}
    by_node: dict[int, list[GpuJson]] = {node: [] for node in cpus}
    for card in seen["gpus"]:
        node = card["numaNode"]
        by_node.setdefault(_NO_NODE if node is None else node, []).append(card)
    width = max((measure(_title(card)) for card in seen["gpus"]), default=0)
    branches: list[Branch] = [
        (_describe_node(node, cpus.get(node, "")), [_branch_of(card, width) for card in cards])
        for node, cards in sorted(by_node.items())
    ]
    iommu = "IOMMU on" if seen["iommu"] else "no IOMMU"
    print(plain(f"{seen['host'] or 'host'} ({iommu})"))
    for line in _draw(branches, ""):
        print(line)


def _describe_node(node: int, cpus: str) -> str:
    if node == _NO_NODE:
        return "no NUMA node of its own"
    return f"NUMA node {node}" + (f" (CPUs {cpus})" if cpus else "")


def _title(card: GpuJson) -> str:
    name = "" if card["name"] == card["address"] else f"  {card['name']}"
    return plain(f"{card['address']}{name}")


def _branch_of(card: GpuJson, width: int) -> Branch:
    title = _title(card)
    full = measure_fullness(card)
    bar = f"  {_paint_bar(full)}  {full.describe()}" if full else ""
    below: list[Branch] = [(plain(_describe_slice(piece)), []) for piece in card["slices"]]
    if card["why"]:
        below.append((paint(plain(card["why"]), None if card["usable"] else "yellow"), []))
    return (title + " " * (width - measure(title)) * bool(bar) + bar, below)


def _paint_bar(full: Fullness) -> str:
    return paint(full.draw(), "red" if full.used >= full.total else "green")


def _draw(branches: Sequence[Branch], indent: str) -> Iterator[str]:
    for number, (line, below) in enumerate(branches):
        last = number == len(branches) - 1
        yield f"{indent}{'└─' if last else '├─'} {line}"
        yield from _draw(below, f"{indent}{'   ' if last else '│  '}")


def print_gpu(card: GpuJson) -> None:
    """Write one card in full."""
    mark = paint("●", "green") if card["usable"] else paint("○", "yellow")
    print(f"{mark} {_title(card)}: {'usable' if card['usable'] else 'not usable'}")
    for label, text in _describe(card):
        print(f"{label:>{_LABEL_WIDTH}}{':' if label else ' '} {plain(text)}")


def _describe(card: GpuJson) -> list[tuple[str, str]]:
    """Return labels and texts; an empty label goes on with the one above."""
    full = measure_fullness(card)
    ids = f"{card['vendor']}:{card['device']}" if card["vendor"] else ""
    board = " ".join(word for word in (card["subsystem"], card.get("subsystemName", "")) if word)
    display = card.get("inUseByHost") or ("boot display" if card.get("bootVga") else "")
    lines = [
        ("Why", card["why"]),
        ("Full", f"{full.draw()} {full.describe()}" if full else ""),
        ("Ids", f"{ids}, class {card['class']}" if ids else ""),
        ("Board", board),
        ("Driver", card["driver"] or ""),
        ("Offers", ", ".join(card["backends"])),
        ("NUMA node", "" if card["numaNode"] is None else str(card["numaNode"])),
        ("CPUs", card.get("localCpus", "")),
        ("Display", display),
        ("Reset", " ".join(card.get("resetMethods", ()))),
        ("No reset", describe_missing_reset(card.get("withoutReset", ()))),
        ("Path", card.get("path", "")),
    ]
    lines = [(label, text) for label, text in lines if text]
    lines += _describe_group(card)
    if card["vfs"]["total"]:
        kind = card["vfs"].get("type", "")
        number = f"{card['vfs']['enabled']} of {card['vfs']['total']}"
        lines.append(("VFs", f"{number}, {kind}" if kind else number))
    lines += _label("", [_describe_function(vf) for vf in card["vfs"].get("functions", ())])
    lines += _label("Companions", [_describe_function(each) for each in card.get("companions", ())])
    lines += _label("Host's use", card.get("hostUse", ()))
    lines += _label("Staying", [_describe_function(each) for each in card.get("staying", ())])
    lines += _label("Types", [_describe_type(kind) for kind in card["types"]])
    lines += _label("Slices", [_describe_slice(piece) for piece in card["slices"]])
    return lines


def _describe_group(card: GpuJson) -> list[tuple[str, str]]:
    group = card.get("group")
    if group is None:
        return []
    viable = "viable" if group["viable"] else "not viable"
    line = f"{group['number']}, {viable}: {', '.join(group['members'])}"
    return _label("IOMMU group", [line, *group["blockers"]])


def _label(label: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    return [("" if number else label, text) for number, text in enumerate(texts)]


def _describe_function(function: FunctionJson) -> str:
    kind = describe_class(function.get("class", ""))
    words = [function["address"], *([kind] if kind else []), function["driver"] or "no driver"]
    words += [] if function["iommuGroup"] is None else [f"group {function['iommuGroup']}"]
    return ", ".join([*words, *function["blockers"]])


def _describe_type(kind: GpuTypeJson) -> str:
    name = "" if kind["name"] == kind["id"] else f" {kind['name']}"
    memory = "" if kind["vramMiB"] is None else f", {kind['vramMiB']} MiB"
    left = "unknown" if kind["available"] is None else str(kind["available"])
    limit = "" if kind["max"] is None else f" of {kind['max']}"
    return f"{kind['id']}{name}{memory}, {left}{limit} left"


def _describe_slice(piece: GpuSliceJson) -> str:
    owner = piece["vm"] or piece.get("owner") or ("ours" if piece["ours"] else "not ours")
    words = [piece["kind"] if piece["type"] is None else piece["type"], piece["id"]]
    if piece.get("parent", piece["id"]) != piece["id"] and piece["kind"] == "vgpu":
        words += ["on", piece["parent"]]
    words.append(f"({owner})")
    holders = piece.get("holders", ())
    if holders:
        words.append(f"held by {', '.join(map(str, holders))}")
    return " ".join(words)
