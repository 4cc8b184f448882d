"""Doing something as another user of this host, really: in a child that has given up root."""

import os
import pickle
from collections.abc import Callable
from typing import TypeVar

import pytest

Result = TypeVar("Result")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")

QEMU_USER = 60955
"""Whom a guest that broke out of its QEMU is: a number that nobody else has."""

LOCAL_USER = 60956
"""Any other user of the host."""


def act_as(uid: int, do: Callable[[], Result]) -> Result:
    """Return what ``do`` returns where it is done by ``uid``, without any of root's rights."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            answer: tuple[bool, object] = (True, do())
        except Exception as error:
            answer = (False, error)
        with open(writer, "wb") as stream:
            stream.write(pickle.dumps(answer))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    succeeded, result = pickle.loads(text)
    if not succeeded:
        raise result
    returned: Result = result
    return returned
