"""Names of PCI devices from the system's pci.ids (https://pci-ids.ucw.cz, man 5 pci.ids).

The file has 1.4 MB of text in three depths of indentation. It is searched as bytes, for the few
devices that a host has; reading it line by line would take longer than everything else.
"""

import re
from pathlib import Path

from attrs import define, field

PLACES = (Path("/usr/share/misc/pci.ids"), Path("/usr/share/hwdata/pci.ids"))
"""Where Debian and where Fedora, openSUSE and Arch have it."""

_NOT_BELOW = [re.compile(rb"\n(?!\t{%d}|#|\n|\Z)" % (depth + 1)) for depth in range(3)]
"""The next line that does not belong to an entry of each depth."""


@define(eq=False)
class PciIds:
    """Looks names up; reads the file at the first question. Without a file nothing has a name."""

    places: tuple[Path, ...] = PLACES
    _text: bytes | None = None
    _known: dict[tuple[str, ...], str] = field(factory=dict)

    def vendor(self, vendor: str) -> str:
        """Return a vendor's name by its four hexadecimal digits; "" where it is not known."""
        return self._find((vendor,))

    def device(self, vendor: str, device: str) -> str:
        """Return a device's name, without its vendor's."""
        return self._find((vendor, device))

    def subsystem(self, vendor: str, device: str, subsystem: str) -> str:
        """Return the name of the board that a device is on; ``subsystem`` is vendor:device."""
        return self._find((vendor, device, subsystem.replace(":", " ")))

    def _find(self, ids: tuple[str, ...]) -> str:
        if not all(ids):
            return ""
        if ids not in self._known:
            self._known[ids] = self._search(ids)
        return self._known[ids]

    def _search(self, ids: tuple[str, ...]) -> str:
        if self._text is None:
            self._text = self._read()
        begin, end = 0, len(self._text)
        name = b""
        for depth, number in enumerate(ids):
            found = self._text.find(b"\n" + b"\t" * depth + number.encode() + b"  ", begin, end)
            if found < 0:
                return ""
            line_end = self._text.find(b"\n", found + 1)
            name = self._text[found + 1 : line_end].strip().partition(b"  ")[2]
            after = _NOT_BELOW[depth].search(self._text, line_end, end)
            begin, end = line_end, after.start() + 1 if after else end
        return name.decode(errors="replace").strip()

    def _read(self) -> bytes:
        for place in self.places:
            try:
                return b"\n" + place.read_bytes() + b"\n"
            except OSError:
                continue
        return b""
