"""The lab has what its README says, and behaves as a host would."""

from pathlib import Path


def test_the_sample_parents_are_registered() -> None:
    parents = {path.name for path in Path("/sys/class/mdev_bus").iterdir()}
    assert {"mtty", "mdpy", "mbochs"} <= parents
