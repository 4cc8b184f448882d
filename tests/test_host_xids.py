"""NVIDIA's lines in the kernel log: read in every form that drivers write, and judged."""

import pytest

from arcsup.host.xids import XIDS, XidLine, XidVerdict, find_xid, judge_xid

FALLEN = "NVRM: Xid (PCI:0000:2b:00): 79, GPU has fallen off the bus."


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (FALLEN, XidLine("0000:2b:00", 79, "GPU has fallen off the bus.")),
        (
            "NVRM: Xid (PCI:0000:01:00): 31, pid=815, name=vgpu, Ch 00000008",
            XidLine("0000:01:00", 31, "pid=815, name=vgpu, Ch 00000008"),
        ),
        (
            "NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained",
            XidLine("0000:01:00", 94, "pid=7194, Contained"),
        ),
        ("NVRM: Xid (0000:01:00): 62", XidLine("0000:01:00", 62, "")),
        ("NVRM: Xid (PCI:00000000:C1:00): 48, x", XidLine("0000:c1:00", 48, "x")),
        ("NVRM: GPU at PCI:0000:2b:00: GPU-0b11d014-1685-04bd-26ed-5fc0bc1c44ae", None),
    ],
)
def test_an_xid_is_read_in_every_form(text: str, line: XidLine | None) -> None:
    assert find_xid(text) == line


def verdict(number: int, words: str = "") -> XidVerdict:
    return judge_xid(XidLine("0000:01:00", number, words))


@pytest.mark.parametrize("number", [46, 48, 62, 64, 79, 95, 119, 120, 140, 143])
def test_what_only_a_reset_of_the_card_mends_loses_it(number: int) -> None:
    found = verdict(number)
    assert found.lost
    assert found.because == f"Xid {number}: {XIDS[number].meaning}"


@pytest.mark.parametrize("number", [13, 31, 43, 45, 63, 69, 92, 94])
def test_what_a_guests_program_has_done_loses_nothing(number: int) -> None:
    assert verdict(number).lost is None


def test_an_unknown_number_is_told_in_the_drivers_words_and_loses_nothing() -> None:
    assert verdict(4711, "something new") == XidVerdict(None, "Xid 4711: something new")


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", True),
        ("GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)", True),
        ("GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)", False),
        ("in words that no driver has written yet", None),
    ],
)
def test_the_drivers_own_word_of_what_is_to_be_done_counts(words: str, lost: bool | None) -> None:
    assert verdict(154, words).lost is lost
