"""What comes from outside is thrown at its readers: VM files, and QEMU's side of a monitor.

A reader takes what it is given or says in its own way what is wrong; nothing else may happen, and
nothing takes for ever. ARCSUP_FUZZ_SECONDS lets each look for so long (`make fuzz`: a minute), with
other examples each time.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from qemu.qmp import QMPError
from trio.testing import memory_stream_pair

from arcsup.spec.native import read_vm
from arcsup.vm.qmp import open_qmp
from tests.mutated import mutations

SECONDS = float(os.environ.get("ARCSUP_FUZZ_SECONDS", "0"))

ENOUGH = settings(
    deadline=None,
    max_examples=500 if SECONDS else 50,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
    derandomize=not SECONDS,
    database=None,
)

SEEDS = [file.read_text() for file in sorted(Path(__file__).parents[1].glob("examples/*.yaml"))]

MESSAGES = [
    b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}',
    b'{"return": {}, "id": 1}',
    b'{"return": [{"name": "serial0"}], "id": 2}',
    b'{"error": {"class": "GenericError", "desc": "no"}, "id": 2}',
    b'{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}, "data": {"a": [1, null]}}',
    b'{"id": 2}',
    b"[" * 3000,
]

PIECES = st.one_of(
    st.sampled_from(MESSAGES),
    st.sampled_from(MESSAGES).flatmap(
        lambda line: st.builds(
            lambda at, new: line[:at] + new + line[at:],
            st.integers(0, min(len(line), 120)),
            st.binary(max_size=6),
        )
    ),
    st.binary(max_size=40),
)


def search_on(search: Callable[[], None]) -> None:
    """Search once, or again and again until the time is over."""
    end = time.monotonic() + SECONDS
    search()
    while time.monotonic() < end:
        search()


def test_no_vm_file_does_anything_but_give_a_vm_or_faults() -> None:
    @ENOUGH
    @given(st.one_of(mutations(SEEDS, "ab:-[]{}\"'&*!|>%@#,? \n01.~"), st.binary(max_size=200)))
    def search(source: str | bytes) -> None:
        parsed = read_vm(source, Path("box.yaml"), "0")
        assert (parsed.vm is None) == bool(parsed.faults)

    search_on(search)


async def converse(lines: list[bytes], cut: bool) -> None:
    """Hold a session with a QEMU that says these lines, whatever it is asked, and goes."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def talk() -> None:
            try:
                await theirs.send_all(b"\r\n".join(lines) + (b"" if cut else b"\r\n"))
            except trio.BrokenResourceError:
                return
            await theirs.send_stream.aclose()

        with trio.fail_after(60):
            try:
                async with open_qmp(ours) as qmp:
                    await qmp.execute("query-status")
                    async for event in qmp.events:
                        assert isinstance(event.name, str)
            except QMPError:
                pass  # Its own way to say that this is no QEMU, or one that went.


def test_no_qemu_does_anything_but_answer_or_end_its_session() -> None:
    @ENOUGH
    @given(st.lists(PIECES, max_size=8), st.booleans(), st.booleans())
    def search(lines: list[bytes], greets: bool, cut: bool) -> None:
        trio.run(converse, [*(MESSAGES[:2] if greets else []), *lines], cut)

    search_on(search)
