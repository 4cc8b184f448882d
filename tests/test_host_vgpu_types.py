"""What vendors write of their types is understood, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcsup.devices import Backend, CapacityRule, Slice, SliceType
from arcsup.host.vgpu_types import (
    find_rule,
    most_of,
    parse_creatable,
    vram_of,
    vram_of_name,
)
from arcsup.model import MiB
from tests.trees import CAPTURES, GVTG_4, GVTG_8, L40S, nvidia


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("NVIDIA L40S-2Q", 2048),
        ("GRID M60-0Q", 512),
        ("GRID M10-0B", 512),
        ("GRID P4-2B4", 2048),
        ("GRID P4-1B4", 1024),
        ("NVIDIA RTXA6000-48Q", 49152),
        ("NVIDIA H200X-141C", 144384),
        ("NVIDIA H200X-1-18C", 18432),
        ("GRID A100-1-5C", 5120),
        ("GRID A100-1-5CME", 5120),
        ("GRID A100D-1-10C", 10240),
        ("NVIDIA RTX Pro 6000 Blackwell DC-1-24Q", 24576),
        ("NVIDIA A16-1A", 1024),
    ],
)
def test_the_name_alone_tells_the_video_memory(name: str, mib: int) -> None:
    assert vram_of_name(name) == mib


@pytest.mark.parametrize(
    "name", ["", "GRID K120Q", "Tesla P4", "NVIDIA L40S-2X", "2Q", "GVTg_V5_4", "a-2Q more"]
)
def test_a_name_that_tells_nothing_is_unknown(name: str) -> None:
    assert vram_of_name(name) is None


@pytest.mark.parametrize(
    ("type_id", "name", "description", "mib"),
    [
        ("nvidia-64", "GRID P4-2Q", nvidia(2048, 4), 2048),
        ("nvidia-474", "GRID A100-1-5C", nvidia(4864, 7), 4864),
        ("nvidia-1148", "NVIDIA L40S-2Q", "", 2048),
        ("i915-GVTg_V5_4", "GVTg_V5_4", GVTG_4, 512),
        ("i915-GVTg_V5_8", "", GVTG_8, 384),
        ("i915-GVTg_V5_8", "", GVTG_8.replace("\n", ", "), 384),
        ("mbochs-large", "mbochs-large", "virtual display, 64 MB video memory", 64),
        ("mdpy-hd", "mdpy-hd", "virtual display, 1920x1080 framebuffer", None),
        ("mtty-2", "Dual port serial", "", None),
        ("other-1", "Some Card-2Q", "", None),
    ],
)
def test_the_description_goes_before_the_name(
    type_id: str, name: str, description: str, mib: int | None
) -> None:
    assert vram_of(type_id, name, description) == mib


def test_the_limit_of_the_whole_card_is_in_nvidias_description() -> None:
    assert most_of(nvidia(2048, 4)) == 4
    assert most_of(GVTG_4) is None


@pytest.mark.parametrize(
    ("text", "types"),
    [
        (L40S, {1147: "NVIDIA L40S-1Q", 1148: "NVIDIA L40S-2Q", 1156: "NVIDIA L40S-48Q"}),
        ("ID  : VGPU Name\n", {}),
        ("", {}),
        ("1414 : NVIDIA H200X-1-18C", {1414: "NVIDIA H200X-1-18C"}),
        ("12 : A: B\n", {12: "A: B"}),
        ("0 : none\n-4 : x\n0x10 : y\n4_2 : z\n٤ : w\nno colon\n", {}),
    ],
)
def test_creatable_types_are_read_with_and_without_a_heading(
    text: str, types: dict[int, str]
) -> None:
    assert parse_creatable(text) == types


@given(st.text())
def test_no_text_of_a_driver_raises(text: str) -> None:
    parse_creatable(text)
    vram_of("nvidia-1", text, text)
    most_of(text)


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures beside the checkout")
@pytest.mark.parametrize(
    ("capture", "count", "sizes"),
    [
        ("V01-creatable-l40s.txt", 23, {1145: 1024, 1148: 2048, 1156: 49152, 2164: 3072}),
        ("V03-creatable-h200-noheader.txt", 2, {1428: 144384, 1414: 18432}),
        ("V04-creatable-consumed-header-only.txt", 0, {}),
    ],
)
def test_captured_lists_have_their_types_and_sizes(
    capture: str, count: int, sizes: dict[int, int]
) -> None:
    found = parse_creatable((CAPTURES / capture).read_text())
    assert len(found) == count
    assert {number: vram_of_name(found[number]) for number in sizes} == sizes
    assert all(vram_of_name(name) for name in found.values())


# --- which types stand beside one another -------------------------------------------------------


def offer(available: dict[str, int]) -> list[SliceType]:
    sizes = {"nvidia-1q": 1024, "nvidia-2q": 2048, "nvidia-2b": 2048, "nvidia-4q": 4096}
    return [
        SliceType(name, name, MiB(sizes[name]), left, None, "vfio-pci", "card", Backend.MDEV)
        for name, left in available.items()
    ]


TAKEN = [Slice(Backend.MDEV, "uuid", "nvidia-2q", "card", "/path")]


@pytest.mark.parametrize(
    ("left", "rule"),
    [
        ((0, 3, 3, 0), CapacityRule.SAME_SIZE),
        ((0, 3, 0, 0), CapacityRule.SAME_TYPE),
        ((6, 3, 3, 1), CapacityRule.MIXED),
        ((0, 0, 0, 0), CapacityRule.SAME_SIZE),
    ],
)
def test_what_is_left_beside_a_vgpu_tells_the_rule(
    left: tuple[int, ...], rule: CapacityRule
) -> None:
    names = ("nvidia-1q", "nvidia-2q", "nvidia-2b", "nvidia-4q")
    assert find_rule(offer(dict(zip(names, left, strict=True))), TAKEN, "535.1") is rule


@pytest.mark.parametrize(
    ("version", "rule"),
    [
        ("460.32.04", CapacityRule.SAME_TYPE),
        ("470.63", CapacityRule.SAME_SIZE),
        ("", CapacityRule.SAME_SIZE),
        ("new", CapacityRule.SAME_SIZE),
    ],
)
def test_the_driver_tells_the_rule_of_an_empty_card(version: str, rule: CapacityRule) -> None:
    assert find_rule(offer({"nvidia-1q": 8, "nvidia-2q": 4}), [], version) is rule


def test_other_vendors_mix_freely() -> None:
    kind = SliceType("i915-GVTg_V5_4", "", None, 1, None, "vfio-pci", "card", Backend.MDEV)
    assert find_rule([kind], [], "") is CapacityRule.ANY
