"""A qm.conf taken apart, and what of the native file has been made of it."""

from attrs import define, field, frozen

from arcsup.spec.draft import Draft, Value
from arcsup.spec.faults import Mark


@frozen
class Entry:
    """The value of a key: ``first,key=value,…`` or as it stands."""

    key: str
    text: str
    mark: Mark

    def parts(self) -> tuple[str, dict[str, str]]:
        """Return what stands before the first comma, and the named rest."""
        first, *rest = self.text.split(",")
        named = dict(part.partition("=")[::2] for part in rest)
        if "=" in first:
            name, _, value = first.partition("=")
            named = {name: value} | named
            first = ""
        return first, named


@define
class Machine:
    """The entries of a file by key, and the lists that the native file has.

    ``functions`` are the addresses of all PCI functions that the file passes.
    """

    entries: dict[str, Entry]
    functions: frozenset[str]
    draft: Draft
    disks: dict[str, Value] = field(factory=dict)
    cdroms: list[Value] = field(factory=list)
    networks: list[Value] = field(factory=list)
    gpus: list[Value] = field(factory=list)
    usb: list[Value] = field(factory=list)

    def text(self, key: str) -> str:
        """Return a value, "" when the file does not have it."""
        entry = self.entries.get(key)
        return entry.text if entry is not None else ""

    def note(self, entry: Entry, message: str) -> None:
        """Tell something of an entry."""
        self.draft.note(entry.mark, entry.key, message)
