"""The journal of setup: what was done to this host, written before it was done.

Entries are in the order of doing; taking back goes from the last to the first.
"""

import json
from pathlib import Path

import cattrs
from attrs import define, field, frozen
from cattrs.strategies import configure_tagged_union

from arcsup.durable import write_durably
from arcsup.errors import Terminal
from arcsup.setup.actions import Action

VERSION = 1


@frozen
class Entry:
    """An action; ``done`` once it was carried out to its end.

    ``packages`` are those that were installed by it, dependencies too, once it is done.
    """

    action: Action
    done: bool = False
    packages: tuple[str, ...] = ()


@frozen
class _Kept:
    version: int
    entries: tuple[Entry, ...]


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    configure_tagged_union(Action, converter, tag_name="kind")
    return converter


@define
class Journal:
    """The entries, and the file that they are kept in."""

    file: Path
    entries: list[Entry] = field(factory=list)

    @classmethod
    def load(cls, file: Path) -> "Journal":
        """Return what was kept; nothing where there is no file. Raises Terminal."""
        try:
            content = json.loads(file.read_bytes())
            kept = _converter().structure(content, _Kept)
        except FileNotFoundError:
            return cls(file)
        except (OSError, ValueError, TypeError, cattrs.BaseValidationError) as error:
            raise Terminal(
                f"{file} cannot be read: it tells what setup did to this host",
                "move it away to begin anew; nothing done before can be taken back then",
            ) from error
        if kept.version != VERSION:
            raise Terminal(f"{file} was written by a later arcsup", "use that one")
        return cls(file, list(kept.entries))

    def begin(self, action: Action) -> None:
        """Note what is about to be done; it takes the place of a try that did not end."""
        tried = Entry(action)
        self.entries = [*(entry for entry in self.entries if entry != tried), tried]
        self.save()

    def replace_last(self, entry: Entry) -> None:
        """Note how it went."""
        self.entries[-1] = entry
        self.save()

    def forget(self, index: int) -> None:
        """Drop what was taken back; without entries the file goes too."""
        del self.entries[index]
        self.save()

    def save(self) -> None:
        """Make it durable.

        Where the state directory is still to be made there is nothing to write to: a crash in
        that moment leaves an empty directory that is nobody's.
        """
        if not self.file.parent.is_dir():
            return
        if not self.entries:
            self.file.unlink(missing_ok=True)
            return
        kept = _Kept(VERSION, tuple(self.entries))
        write_durably(self.file, json.dumps(_converter().unstructure(kept), indent=1), 0o600)
