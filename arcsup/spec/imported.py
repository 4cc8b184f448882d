"""Other systems' files as native files: text to text, with comments and with what got lost.

Every comment of the original is kept: above or behind the key that was made of its line, else in a
block of its own.
"""

import json
import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from uuid import UUID

import yaml
from attrs import define, frozen

from arcsup.model import VmName
from arcsup.spec.comments import Comments, find_comments
from arcsup.spec.draft import At, Draft, Note, is_name, make_name, on_one_line
from arcsup.spec.faults import Problems, error_of, place
from arcsup.spec.libvfio import is_libvfio, translate_libvfio
from arcsup.spec.libvirt import translate_libvirt
from arcsup.spec.nodes import Mapping, Node, Scalar, Sequence, compose, decode
from arcsup.spec.proxmox import looks_like_proxmox, translate_proxmox
from arcsup.spec.tables import VM


class Form(StrEnum):
    """Whose file it is."""

    LIBVFIO = "libvfio"
    LIBVIRT = "libvirt"
    PROXMOX = "proxmox"


_SHOWN = {Form.LIBVFIO: "LibVF.IO", Form.LIBVIRT: "libvirt", Form.PROXMOX: "Proxmox VE"}


@frozen
class Imported:
    """A native file's text, and what is not as it was in the original."""

    text: str
    name: VmName
    notes: tuple[Note, ...]


def import_vm(source: str | bytes, file: Path, form: Form | None = None) -> Imported:
    """Return the native file for another system's. ``form`` None: find out whose it is.

    Raises SpecError with all faults of the file, at their places.
    """
    try:
        text = decode(source)
        form = form or _find_form(text, file)
        draft, comments = _translate(text, file, form)
        _name(draft, file)
        draft.keys = {key.name: draft.keys.get(key.name) for key in VM.keys}
        vm, problems = VM.read_all(draft.tree(), "", {"uuid": UUID(int=0)})
        if problems or vm is None:
            raise Problems(problems)
    except Problems as found:
        raise error_of(place(found.problems, file)) from None
    draft.notes.sort(key=lambda note: note.mark)
    headline = f"Imported from {on_one_line(file.name)}, a file of {_SHOWN[form]}'s."
    written = _Writer(draft, comments).write(headline)
    return Imported(written, vm.name, tuple(draft.notes))


def _find_form(text: str, file: Path) -> Form:
    if text.lstrip().startswith("<"):
        return Form.LIBVIRT
    if file.suffix == ".conf" or looks_like_proxmox(text):
        return Form.PROXMOX
    if not is_libvfio(compose(text)):
        raise Problems.whole(
            "is no file of LibVF.IO (no `container`), libvirt or Proxmox VE; "
            "a native file needs no import"
        )
    return Form.LIBVFIO


def _translate(text: str, file: Path, form: Form) -> tuple[Draft, Comments]:
    if form is Form.LIBVIRT:
        return translate_libvirt(text)
    if form is Form.PROXMOX:
        return translate_proxmox(text), Comments()
    return translate_libvfio(compose(text), file), find_comments(text)


def _name(draft: Draft, file: Path) -> None:
    """Give the VM a name where the file has none that can be one."""
    if "name" not in draft.keys:
        name = file.stem if is_name(file.stem) else make_name(file.stem) or "imported"
        draft.keys = {"name": At(name, draft.mark), **draft.keys}


@define
class _Writer:
    """Writes a draft as YAML; each comment is taken once, by the first key of its line."""

    draft: Draft
    comments: Comments

    def write(self, headline: str) -> str:
        """Return the file."""
        top = [line for line in self.comments.above if line <= self.draft.mark.line]
        first = [text for line in sorted(top) for text in self.comments.above.pop(line)]
        body = self._map(self.draft.tree(), "")
        head = [*first, *([""] if first else []), headline]
        if self.draft.notes:
            head += ["", "Not as it was there:"]
            head += [f"  line {note.mark.line}: {note}" for note in self.draft.notes]
        rest = self.comments.take_rest()
        if rest:
            head += ["", "Comments on lines that nothing here is made of:"]
            head += [f"  line {line}: {text}" for line, text in rest]
        lines = [f"# {line}".rstrip() for line in head]
        return "\n".join([*lines, "", *body]) + "\n"

    def _map(self, node: Mapping, indent: str) -> list[str]:
        lines: list[str] = []
        for key, value in node.pairs:
            assert isinstance(key, Scalar)
            above, behind = self._comments_of(key, value)
            lines += [f"{indent}# {text}" for text in above]
            tail = f"  # {behind}" if behind else ""
            if isinstance(value, Scalar) or _is_flat(value):
                lines.append(f"{indent}{key.text}: {_flow(value)}{tail}")
            else:
                lines.append(f"{indent}{key.text}:{tail}")
                lines += self._block(value, indent + "  ")
        return lines

    def _block(self, node: Node, indent: str) -> list[str]:
        if isinstance(node, Mapping):
            return self._map(node, indent)
        assert isinstance(node, Sequence)
        lines: list[str] = []
        for item in node.items:
            inner = item.pairs if isinstance(item, Mapping) else ()
            own = item.mark.line not in {key.mark.line for key, _ in inner}
            above, behind = self._take([item.mark.line] if own else [])
            texts = [*above, *([behind] if behind else [])]
            lines += [f"{indent}# {text}" for text in texts]
            if isinstance(item, Mapping) and item.pairs:
                first, *others = self._map(item, "")
                # A comment of the first key must not come between the dash and the key.
                while first.startswith("#"):
                    lines.append(f"{indent}{first}")
                    first, *others = others
                lines.append(f"{indent}- {first}")
                lines += [f"{indent}  {line}" for line in others]
            else:
                lines.append(f"{indent}- {_flow(item)}")
        return lines

    def _comments_of(self, key: Node, value: Node) -> tuple[list[str], str]:
        """Return the comments on a key; one that the file does not have stands at the root."""
        if value.mark == self.draft.mark:
            return [], ""
        lines = [key.mark.line]
        if isinstance(value, Scalar):
            lines.append(value.mark.line)
        elif isinstance(value, Sequence) and _is_flat(value):
            lines += [item.mark.line for item in value.items]
        return self._take(lines)

    def _take(self, lines: Iterable[int]) -> tuple[list[str], str]:
        above: list[str] = []
        behind: list[str] = []
        for line in dict.fromkeys(lines):
            above += self.comments.above.pop(line, [])
            behind += self.comments.behind.pop(line, [])
        return above, "; ".join(behind)


def _is_flat(node: Node) -> bool:
    """Tell whether a list or map goes on one line: lists of plain values, and what is empty."""
    if isinstance(node, Sequence):
        return all(isinstance(item, Scalar) for item in node.items) and len(node.items) < 8
    return isinstance(node, Mapping) and not node.pairs


def _flow(node: Node) -> str:
    if isinstance(node, Scalar):
        return _scalar(node)
    if isinstance(node, Sequence):
        # In double quotes nothing of a value means anything to YAML's flow style.
        parts = [
            json.dumps(item.text, ensure_ascii=False)
            if isinstance(item, Scalar) and item.type == "str"
            else _flow(item)
            for item in node.items
        ]
        return f"[{', '.join(parts)}]"
    pairs = (f"{_flow(key)}: {_flow(value)}" for key, value in node.pairs)
    return f"{{{', '.join(pairs)}}}"


def _scalar(node: Scalar) -> str:
    if node.type != "str" or re.fullmatch("[a-z][a-z0-9-]*[0-9][a-z0-9-]*", node.text):
        return node.text
    style = '"' if "\n" in node.text else None
    written = yaml.safe_dump(node.text, default_style=style, allow_unicode=True, width=1 << 20)
    return written.removesuffix("\n").removesuffix("\n...")
