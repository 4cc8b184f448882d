"""Reading VM files as if arcsup could do all that they may say."""

import pytest
from attrs import evolve

from arcsup.spec import imported, native, rules, tables

VM = evolve(
    tables.VM,
    rules=tuple(
        rule
        for rule in tables.VM.rules
        if rule.check is not getattr(rules, "refuse_unsupported", None)
    ),
)


@pytest.fixture
def every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files ask for devices of the host, whether or not arcsup has them yet."""
    monkeypatch.setattr(native, "VM", VM)
    monkeypatch.setattr(imported, "VM", VM)
