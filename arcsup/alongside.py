"""A task for the length of a block, and what nurseries make of errors."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TypeVar, TypeVarTuple

import trio

Ts = TypeVarTuple("Ts")
E = TypeVar("E", bound=Exception)


@asynccontextmanager
async def alongside(task: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> AsyncIterator[None]:
    """Run ``task`` beside the block and cancel it at the block's end.

    A nursery wraps whatever the block raises in a group; here it comes out as it is, because the
    block is what the caller wrote and the task is only there to serve it. The task's own errors
    are defects and stay in their group.
    """
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task, *args)
        try:
            yield
        except Exception as error:
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


def leaves(group: BaseExceptionGroup[E]) -> Iterator[E]:
    """Yield the errors themselves, however deep the groups are nested."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error
