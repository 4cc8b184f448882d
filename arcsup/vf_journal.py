"""What arcsup has done to virtual functions, kept for as long as the host is up.

Virtual functions do not outlast the host's uptime, so neither does what is kept of them.
"""

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import cattrs
import trio
from attrs import define, field, frozen
from cattrs.errors import BaseValidationError

from arcsup.devices import VfQuota
from arcsup.durable import write_durably
from arcsup.errors import Terminal

logger = logging.getLogger(__name__)


@frozen
class KeptQuota:
    """What the virtual functions of a card may use, and by number what they might before arcsup.

    ``wanted`` is None where it was only begun.
    """

    wanted: VfQuota | None
    former: Mapping[int, VfQuota]


@frozen
class _Content:
    bootId: str  # noqa: N815 - the file's own keys
    cards: dict[str, tuple[int, ...]]
    quotas: dict[str, KeptQuota] = field(factory=dict)


@define(eq=False)
class VfJournal:
    """By card, the numbers of virtual functions that arcsup enabled, or was about to enable.

    ``quotas`` has the cards whose functions' quotas arcsup has set, or was about to set.
    """

    file: Path
    boot_id: str
    counts: dict[str, tuple[int, ...]] = field(factory=dict)
    quotas: dict[str, KeptQuota] = field(factory=dict)
    _turn: trio.Lock = field(factory=trio.Lock)

    @classmethod
    def load(cls, file: Path, boot_id: str) -> "VfJournal":
        """Return what was kept in this boot. What cannot be read makes nothing ours."""
        kept = _Content(boot_id, {})
        try:
            read = cattrs.structure(json.loads(file.read_text()), _Content)
            if read.bootId == boot_id:
                kept = read
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, BaseValidationError) as error:
            logger.warning("%s cannot be read (%s): no virtual function is ours", file, error)
        return cls(file, boot_id, kept.cards, kept.quotas)

    async def note(self, card: str, *counts: int) -> None:
        """Make durable which numbers of virtual functions of a card are ours. Raises Terminal."""
        self.counts[card] = counts
        await self._write()

    async def note_quota(self, card: str, quota: KeptQuota | None) -> None:
        """Make durable what a card's functions may use by us; None: nothing. Raises Terminal."""
        if quota is None:
            self.quotas.pop(card, None)
        else:
            self.quotas[card] = quota
        await self._write()

    async def _write(self) -> None:
        try:
            async with self._turn:
                content = cattrs.unstructure(_Content(self.boot_id, self.counts, self.quotas))
                text = json.dumps(content, indent=1)
                await trio.to_thread.run_sync(partial(write_durably, self.file, text, 0o600))
        except OSError as error:
            raise Terminal(
                f"{self.file} cannot be written: {error.strerror}",
                "nothing is done to virtual functions that could not be recorded first",
            ) from error
