"""Files that something has bitten into, and where a fault in such a file may lie."""

import re
from collections.abc import Sequence

from hypothesis import strategies as st

from arcsup.spec.faults import Fault

_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
"""What ends a line for YAML 1.1 (https://yaml.org/spec/1.1/#b-char)."""


@st.composite
def mutations(draw: st.DrawFn, seeds: Sequence[str], alphabet: str) -> str:
    """One of ``seeds`` with up to five pieces cut out or replaced by signs of ``alphabet``."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        text = text[:start] + draw(st.text(alphabet, max_size=6)) + text[end:]
    return text


def check_places(faults: Sequence[Fault], source: str) -> None:
    """Hold that every fault is one line and lies inside of the file."""
    lines = _BREAK.split(source)
    for fault in faults:
        assert 1 <= fault.line <= len(lines)
        assert 1 <= fault.column <= len(lines[fault.line - 1]) + 1
        assert "\n" not in str(fault)
