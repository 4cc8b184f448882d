"""Where things stand in a LibVF.IO file."""

import re

from attrs import evolve, frozen

from arcsup.spec.draft import At, Value
from arcsup.spec.faults import Mark
from arcsup.spec.nodes import Mapping, Node, Scalar, Sequence, locate


@frozen
class Places:
    """A file, with each GPU as one map; finds what stands at paths such as ``gpus[0].suffix``."""

    root: Mapping

    def mark(self, path: str) -> Mark:
        """Return the place of a value, or of the nearest part of its path that is there."""
        return locate(self.root, path)

    def says(self, path: str) -> bool:
        """Tell whether the file has a key."""
        return self._key(path) is not None

    def at(self, path: str, value: Value) -> At:
        """Return a value with the place of what it is made of."""
        return At(value, self.mark(path), self._key(path))

    def _key(self, path: str) -> Mark | None:
        """Return the place of a key itself, None when the file does not have it."""
        parent, _, name = path.rpartition(".")
        node: Node | None = self.root
        for step in re.findall(r"[^.\[\]]+", parent):
            if isinstance(node, Mapping):
                node = node.find(step)
            elif isinstance(node, Sequence):
                node = node.items[int(step)]
        pairs = node.pairs if isinstance(node, Mapping) else ()
        keys = (key for key, _ in pairs if isinstance(key, Scalar) and key.text == name)
        return next((key.mark for key in keys), None)


def find_path(root: Node, mark: Mark) -> str:
    """Return the path of the value at a place of a file, "" when none stands there."""
    pending: list[tuple[Node, str]] = [(root, "")]
    while pending:
        node, path = pending.pop()
        if path and node.mark == mark:
            return path
        if isinstance(node, Mapping):
            pending += [
                (value, f"{path}.{key.text}" if path else key.text)
                for key, value in reversed(node.pairs)
                if isinstance(key, Scalar)
            ]
        elif isinstance(node, Sequence):
            pending += [(item, f"{path}[{n}]") for n, item in reversed([*enumerate(node.items)])]
    return ""


def flatten_gpus(root: Mapping) -> Mapping:
    """Return the file with each GPU as one map, as which LibVF.IO's lists of maps are meant."""

    def flatten(node: Node) -> Node:
        if not isinstance(node, Sequence) or not node.items:
            return node
        maps = [item for item in node.items if isinstance(item, Mapping)]
        if len(maps) < len(node.items):
            return node
        return Mapping(node.mark, tuple(pair for one in maps for pair in one.pairs), node.size)

    pairs = tuple(
        (key, evolve(value, items=tuple(flatten(item) for item in value.items)))
        if isinstance(key, Scalar) and key.text == "gpus" and isinstance(value, Sequence)
        else (key, value)
        for key, value in root.pairs
    )
    return evolve(root, pairs=pairs)
