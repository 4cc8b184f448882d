"""The socket for reading: there for as long as arcsup.yaml names a group for it."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio
from attrs import define, field

from arcsup.alongside import leaves
from arcsup.control.server import find_group, serve_control
from arcsup.control.supervisor import Supervisor
from arcsup.errors import ArcsupError
from arcsup.keep_going import keep_going

logger = logging.getLogger(__name__)


@define(eq=False)
class ReadingSocket:
    """Serves ``path`` for a group, which may change while it does; for None there is no socket."""

    supervisor: Supervisor
    path: Path
    tell: Callable[[str], None] = logger.warning
    """Hears that the socket was removed, and made again."""
    _group: str | None = None
    _changed: trio.Event = field(factory=trio.Event)

    def give_to(self, group: str | None) -> None:
        """Let another group read, or nobody. Raises Terminal for one that does not exist."""
        if group is not None:
            find_group(group)
        if group != self._group:
            self._group = group
            self._changed.set()
            self._changed = trio.Event()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled. What prevents it at first is raised, as by ``serve_control``."""
        await self._serve_until_changed(task_status)
        serve = partial(self._serve_until_changed, trio.TASK_STATUS_IGNORED)
        while True:
            try:
                await keep_going("serving the socket for reading", serve)
            except* ArcsupError as group:
                for error in leaves(group):
                    logger.error("%s", error.message)  # noqa: TRY400
                await self._changed.wait()

    async def _serve_until_changed(self, task_status: trio.TaskStatus[None]) -> None:
        changed = self._changed
        async with trio.open_nursery() as nursery:
            if self._group is not None:
                serve = partial(serve_control, read_only=True, group=self._group, tell=self.tell)
                await nursery.start(serve, self.supervisor, self.path)
            task_status.started()
            await changed.wait()
            nursery.cancel_scope.cancel()
