"""A monitor for tests that answers from a table."""

from collections.abc import Mapping
from typing import Any

from trio.testing import memory_stream_pair

from arcsup.vm.qmp import Qmp


class Answers(Qmp):
    """What was asked is in ``asked``; answers are named as their commands, "_" for "-"."""

    def __init__(self, **answers: object) -> None:
        super().__init__(memory_stream_pair()[0])
        self.answers = answers
        self.asked: list[str] = []

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        self.asked.append(command)
        return self.answers[command.replace("-", "_")]
