"""A look that never comes back costs one thread, and nobody else's."""

from threading import Event

import trio

from arcsup.vm.looking import look_at


async def test_looks_that_never_come_back_leave_all_other_work_its_threads() -> None:
    come_back = Event()

    def hang() -> None:
        come_back.wait()

    many = trio.to_thread.current_default_thread_limiter().total_tokens + 1
    try:
        async with trio.open_nursery() as nursery:
            for number in range(int(many)):
                nursery.start_soon(look_at, f"/dead/{number}", hang)
            assert await trio.to_thread.run_sync(lambda: 7) == 7
            assert await look_at("/here", lambda: 8) == 8
            nursery.cancel_scope.cancel()
    finally:
        come_back.set()


async def test_who_looks_again_waits_for_the_look_that_was_left_behind() -> None:
    looks, begun, come_back = [], trio.Event(), Event()
    token = trio.lowlevel.current_trio_token()

    def look(number: int) -> None:
        looks.append(number)
        token.run_sync_soon(begun.set)
        come_back.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_at, "/dead", look, 1)
        await begun.wait()
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_at, "/dead", look, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert looks == [1]
        come_back.set()

    assert looks == [1, 2]
