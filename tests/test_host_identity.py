"""The host's identity is stable, wherever it comes from."""

from pathlib import Path
from uuid import UUID

import pytest

from arcsup.errors import Terminal
from arcsup.host.identity import boot_id, machine_id


def test_the_systems_own_id_comes_first(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("0123456789abcdef0123456789abcdef\n")

    assert machine_id(tmp_path, (tmp_path / "none", tmp_path / "etc")) == UUID(
        "0123456789abcdef0123456789abcdef"
    )


@pytest.mark.parametrize("content", ["", "uninitialized\n", "0123"])
def test_without_one_an_id_is_made_once_and_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "etc").write_text(content)
    made = machine_id(tmp_path / "state", (tmp_path / "etc",))

    assert machine_id(tmp_path / "state", (tmp_path / "etc",)) == made
    assert machine_id(tmp_path / "other", (tmp_path / "etc",)) != made


def test_an_id_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").touch()

    with pytest.raises(Terminal, match="cannot keep a machine id"):
        machine_id(tmp_path / "state", ())


def test_the_boot_id_is_one_for_this_boot(tmp_path: Path) -> None:
    assert boot_id() == boot_id()
    with pytest.raises(Terminal, match="cannot read the boot id"):
        boot_id(tmp_path / "none")
