#!/usr/bin/python3
"""A program that a VM can name as its QEMU, and that then says what a hostile one could.

What it says stands in the file ``flood`` beside it; what it is asked before it is a VM's QEMU, the
real one answers.
"""

import json
import os
import re
import select
import socket
import sys
from pathlib import Path

EVENT = {
    "timestamp": {"seconds": 1, "microseconds": 2},
    # Names of our own functions' parameters among the keys.
    "data": {"guest": True, "reason": "x" * 100, "message": "m", "kind": "k", "vm": "v",
             "device": "d" * 1000, "node-name": [], "operation": "read"},
}  # fmt: skip


def messages(*events: str) -> bytes:
    """Return the events as QEMU would send them."""
    return b"".join(json.dumps(EVENT | {"event": event}).encode() + b"\r\n" for event in events)


FLOODS = {
    "resets": messages("RESET"),
    "disk errors": messages("BLOCK_IO_ERROR"),
    "halts": messages("STOP", "RESUME"),
    "long events": b'{"event": "RESET", "data": {"reason": "' + b"x" * 2**21 + b'"}}\n',
    "replies": b'{"return": {}, "id": 7}\n' * 500,
    "nothing": b"{}\n" * 5000,
    "huge lines": b'{"event": "E", "data": [' + b"[]," * 2**20 + b"[]]}\n",
    "a line without an end": b"x" * 2**16,
    "garbage": os.urandom(2**16),
    "deep nesting": b"[" * 2**17 + b"\n",
}


def main() -> None:
    """Answer QMP as a QEMU whose guest runs, and begin to flood then."""
    argv = sys.argv
    if "-name" not in argv:
        os.execv("/usr/bin/qemu-system-x86_64", ["qemu-system-x86_64", *argv[1:]])
    flood = Path(__file__).with_name("flood").read_text()
    chardev = next(it for it in argv if it.startswith("socket,id=qmp,"))
    found = re.search(r"fd=(\d+)", chardev)
    assert found is not None
    listener = socket.socket(fileno=int(found[1]))
    # The peer of a monitor is who listened last.
    listener.listen()
    ids = [found[1] for it in argv if (found := re.search(r"^[\w-]+,id=([\w-]+)", it))]
    while True:
        client, _ = listener.accept()
        try:
            serve(client, ids, flood)
        except OSError:
            client.close()


def serve(client: socket.socket, ids: list[str], flood: str) -> None:
    """Greet, answer, and fill every moment in which nothing is asked once it was seen to run."""
    version = {"qemu": {"major": 7, "minor": 2, "micro": 0}}
    client.sendall(json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\n")
    answers: dict[str, object] = {
        "query-status": {"status": "running"},
        "qom-list": [{"name": name} for name in ids],
        "query-jobs": [7] if flood == "odd jobs" else [],
    }
    asked, flooding = b"", False
    while True:
        if not flooding or select.select([client], [], [], 0)[0]:
            got = client.recv(4096)
            if not got:
                # The daemon comes back, or the next one does.
                raise ConnectionResetError
            asked += got
        *lines, asked = asked.split(b"\n")
        for line in lines:
            command = json.loads(line)
            if command["execute"] == "quit":
                os._exit(0)
            answer = answers.get(command["execute"], {})
            client.sendall(json.dumps({"return": answer, "id": command["id"]}).encode() + b"\n")
            if command["execute"] == "query-status" and flood == "nonsense":
                answers = {"query-status": [7], "qom-list": {"name": 7}}
            elif command["execute"] == "query-status":
                flooding = flood != "odd jobs"
        if not flooding:
            continue
        if flood == "standard error":
            os.write(2, b"I am out of sorts. " * 3000 + b"\n")
        else:
            client.sendall(FLOODS[flood])


if __name__ == "__main__":
    main()
