"""Runs the command line in this process against a fake supervisor."""

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from arcsup.cli.main import run
from tests.fake_supervisor import FakeSupervisor


@frozen
class Result:
    """What one call of the command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@frozen
class Cli:
    supervisor: FakeSupervisor
    run_dir: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> Result:
        self.capsys.readouterr()
        code = run(["--run", str(self.run_dir), *arguments])
        captured = self.capsys.readouterr()
        return Result(int(code), captured.out, captured.err)
