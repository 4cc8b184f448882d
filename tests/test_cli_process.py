"""The command line as a whole process: start-up, signals, pipes, terminals, completion."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest

from arcsup.cli.main import ALIASES, VERBS, cli
from arcsup.model import State
from tests.fake_supervisor import FakeSupervisor, make_event, make_status, serve_in_thread

ARCSUP = [sys.executable, "-m", "arcsup"]

HEAVY = {
    *("trio", "attr", "attrs", "cattrs", "yaml", "qemu", "watchfiles", "hypercorn", "starlette"),
    *("prometheus_client", "pyudev", "asyncio", "anyio", "http", "email", "arcsup.model"),
}


@pytest.fixture
def supervisor() -> FakeSupervisor:
    fake = FakeSupervisor(places={"log": "/nowhere"})
    fake.add(make_status("web"), make_status("web-2"), make_status("db"))
    return fake


@pytest.fixture
def run_dir(supervisor: FakeSupervisor, tmp_path: Path) -> Iterator[Path]:
    with serve_in_thread(supervisor, tmp_path):
        yield tmp_path


def call(run_dir: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ARCSUP, "--run", str(run_dir), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        *(["list"], ["list", "--json"], ["status", "web"], ["why", "web"], ["stop", "web"]),
        *(["wait", "web"], ["events"], ["start", "web*"], ["version"]),
        *(
            ["gpu", "list"],
            ["inventory"],
            ["logs", "web"],
            ["qmp", "web", "x"],
            ["plan"],
            ["check", "--help"],
        ),
    ],
    ids=" ".join,
)
def test_client_verbs_import_nothing_heavy(arguments: list[str], run_dir: Path) -> None:
    program = (
        "import sys, json; from arcsup.cli.main import run; run(sys.argv[1:]);"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--run", str(run_dir), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert not loaded & HEAVY


@pytest.mark.parametrize("verb", [verb for verbs in VERBS.values() for verb in verbs])
def test_the_help_of_every_verb_tells_what_it_does_with_an_example(verb: str) -> None:
    assert isinstance(cli, click.Group)
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    text = command.help or ""

    assert text.splitlines()[0].endswith(".")
    assert len(text.splitlines()[0]) <= 80
    summary, *paragraphs, example = text.replace("\b", "").strip().split("\n\n")
    assert summary
    assert paragraphs, "a paragraph says what else one has to know"
    assert example.strip().startswith("Example:")
    assert f"arcsup {verb}" in example


def test_both_names_are_the_same_program(run_dir: Path, tmp_path: Path) -> None:
    done = call(run_dir, "list", "-o", "name")

    assert (done.returncode, done.stdout) == (0, "db\nweb\nweb-2\n")
    assert call(run_dir, "--help").stdout.startswith("Usage: arcsup [OPTIONS] ")


def test_ctrl_c_is_130_without_a_traceback(run_dir: Path, supervisor: FakeSupervisor) -> None:
    process = subprocess.Popen(
        # A shell that runs the tests in the background has SIGINT ignored.
        ["env", "--default-signal=INT", *ARCSUP, "--run", str(run_dir), "events", "-f"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert supervisor.followed.wait(10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)

    assert (process.returncode, out, err.strip()) == (130, b"", b"")


def test_a_reader_that_leaves_is_no_error(run_dir: Path, supervisor: FakeSupervisor) -> None:
    supervisor.add(*(make_status(f"vm-{n}", reason="x" * 100) for n in range(500)))
    process = subprocess.Popen(
        [*ARCSUP, "--run", str(run_dir), "list", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()

    assert process.wait(10) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_events_are_followed_as_they_happen(run_dir: Path, supervisor: FakeSupervisor) -> None:
    supervisor.log.append(make_event("kept", "web"))
    process = subprocess.Popen(
        [*ARCSUP, "--run", str(run_dir), "events", "-f", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["message"] == "kept"
    assert call(run_dir, "stop", "web").returncode == 0
    assert json.loads(process.stdout.readline())["message"] == "stop web"
    process.terminate()
    process.communicate(timeout=10)


def read_terminal(run_dir: Path, *arguments: str, **environment: str) -> str:
    """Run arcsup on a terminal of 80 columns and return what it wrote there."""
    master, slave = pty.openpty()
    os.environ.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [*ARCSUP, "--run", str(run_dir), *arguments],
        stdout=slave,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm"} | environment,
    )
    os.close(slave)
    output = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            break
        output += chunk
    os.close(master)
    process.wait(10)
    return output.decode()


def test_colour_is_for_terminals_that_want_it(run_dir: Path) -> None:
    assert "\x1b[32mrunning" in read_terminal(run_dir, "list")
    assert "\x1b" not in read_terminal(run_dir, "list", NO_COLOR="1")
    assert "\x1b" not in read_terminal(run_dir, "list", TERM="dumb")
    assert "\x1b" not in read_terminal(run_dir, "list", "--json")
    assert "\x1b" not in call(run_dir, "list").stdout


def complete(words: str, run_dir: Path) -> subprocess.CompletedProcess[str]:
    """Ask what bash asks when Tab is pressed behind ``words``."""
    return subprocess.run(
        ARCSUP,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ
        | {
            "ARCSUP_RUN": str(run_dir),
            "_ARCSUP_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
    )


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("arcsup stop we", ["web", "web-2"]),
        ("arcsup --run DIR status d", ["db"]),
        ("arcsup st", ["status", "start", "stop"]),
        ("arcsup list -o n", ["name"]),
    ],
)
def test_the_shell_completes_verbs_options_and_vms(
    words: str, completions: list[str], run_dir: Path
) -> None:
    done = complete(words.replace("DIR", str(run_dir)), run_dir)

    assert [line.partition(",")[2] for line in done.stdout.split()] == completions


def test_completion_without_a_daemon_is_silent(tmp_path: Path) -> None:
    done = complete("arcsup stop w", tmp_path)

    assert (done.stdout.strip(), done.stderr) == ("", "")


def serve_console(path: Path) -> threading.Thread:
    """A guest that greets, and answers what is typed in upper case."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        # Whoever leaves may leave something unread, which resets the connection.
        with listener, listener.accept()[0] as connection, suppress(ConnectionError):
            connection.sendall(b"login: ")
            while typed := connection.recv(100):
                connection.sendall(typed.upper())
                if b"bye" in typed:
                    return

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_the_console_takes_a_pipe_and_ends_with_the_guest(
    run_dir: Path, supervisor: FakeSupervisor
) -> None:
    supervisor.add(make_status("web", console_socket=str(run_dir / "console")))
    guest = serve_console(run_dir / "console")

    done = subprocess.run(
        [*ARCSUP, "--run", str(run_dir), "console", "web"],
        input=b"root\nbye\n",
        capture_output=True,
        timeout=30,
        check=False,
    )
    guest.join(10)

    assert (done.returncode, done.stdout) == (0, b"login: ROOT\nBYE\n")


def test_the_console_on_a_terminal_is_left_with_ctrl_bracket(
    run_dir: Path, supervisor: FakeSupervisor
) -> None:
    supervisor.add(make_status("web", console_socket=str(run_dir / "console")))
    guest = serve_console(run_dir / "console")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*ARCSUP, "--run", str(run_dir), "console", "web"], stdin=slave, stdout=slave, stderr=slave
    )

    shown = b""
    while b"login: " not in shown:
        assert select.select([master], [], [], 10)[0]
        shown += os.read(master, 4096)
    # Ctrl-C is for the guest.
    os.write(master, b"a\x03\x1d")
    assert process.wait(10) == 0
    guest.join(10)
    shown += os.read(master, 4096)
    os.close(slave)
    os.close(master)

    assert b"Ctrl-] leaves it" in shown


def test_a_vm_that_does_not_run_has_no_console(run_dir: Path, supervisor: FakeSupervisor) -> None:
    supervisor.add(make_status("off", State.STOPPED))

    done = call(run_dir, "console", "off")

    assert done.returncode == 6
    assert done.stderr.startswith("arcsup: off is stopped, it has no console\n")


def test_aliases_lead_to_verbs() -> None:
    assert set(ALIASES.values()) <= {verb for verbs in VERBS.values() for verb in verbs}
