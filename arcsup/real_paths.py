"""Where paths lead to, without waiting for storage that does not answer.

A dead network file system keeps whoever looks at it, for ever. A disk of one VM there must not keep
the daemon from all the others.
"""

import os
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread

from attrs import define, field

PATIENCE = 1.0
"""Seconds for an answer; a healthy file system takes microseconds."""

_Questions = SimpleQueue[tuple[str, "Future[str]"] | None]


@define(eq=False)
class RealPaths:
    """Asks in a thread, which is left behind over a question that is not answered.

    Until it comes back, what it was asked about is taken as it is written, at once.
    """

    _turn: Lock = field(factory=Lock)
    _unanswered: dict[str, "Future[str]"] = field(factory=dict)
    _questions: _Questions | None = None

    def resolve(self, path: Path) -> str:
        """Return the path without links, as ``os.path.realpath``. Blocks for PATIENCE at most."""
        text = os.path.normpath(path.absolute())
        with self._turn:
            earlier = self._unanswered.pop(text, None)
            answer = earlier or self._ask(text)
            try:
                return answer.result(PATIENCE if earlier is None else 0)
            except TimeoutError:
                self._unanswered[text] = answer
                if earlier is None:
                    self._leave()
                return text

    def _ask(self, path: str) -> "Future[str]":
        # Not before it is needed: a thread does not outlive a fork.
        if self._questions is None:
            self._questions = SimpleQueue()
            # Not one of a pool: the interpreter would wait for it at its end.
            Thread(target=_answer, args=(self._questions,), daemon=True).start()
        answer: Future[str] = Future()
        self._questions.put((path, answer))
        return answer

    def _leave(self) -> None:
        """Have the thread end when it comes back, and others asked of another."""
        if self._questions is not None:
            self._questions.put(None)
            self._questions = None


def _answer(questions: _Questions) -> None:
    while (question := questions.get()) is not None:
        path, answer = question
        try:
            answer.set_result(os.path.realpath(path))
        except OSError as error:
            answer.set_exception(error)
