"""Write man pages of arcsup and each of its verbs, from the command line itself.

Usage: make_pages.py DIRECTORY. Source of the format: man(7), groff_man(7).
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from arcsup import __version__
from arcsup.cli.main import VERBS, cli
from arcsup.errors import ExitCode

EXIT_CODES = {
    ExitCode.OK: "done, or as desired",
    ExitCode.FAILED: "failed, or findings",
    ExitCode.USAGE: "wrong usage",
    ExitCode.NOT_AS_DESIRED: "not running, or not as desired",
    ExitCode.NO_SUCH_OBJECT: "no such object",
    ExitCode.NO_PERMISSION: "no permission",
    ExitCode.REFUSED: "refused",
    ExitCode.NO_DAEMON: "the daemon cannot be reached",
    ExitCode.TIMED_OUT: "timed out",
}

FILES = {
    "/etc/arcsup/vms/NAME.yaml": "a VM",
    "/etc/arcsup/arcsup.yaml": "the daemon's configuration",
    "/var/lib/arcsup": "images, operators' intent, ownership records",
    "/var/log/arcsup": "logs of each VM",
    "/run/arcsup/arcsup.sock": "the control socket",
}


def escape(text: str) -> str:
    """Return text that troff shows as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line[:1] in {".", "'"} else line for line in text.split("\n"))


def write_head(name: str, summary: str) -> Iterator[str]:
    yield f'.TH "{escape(name.upper())}" 1 "" "arcsup {__version__}" "arcsup"'
    yield ".SH NAME"
    yield f"{escape(name)} \\- {escape(summary.rstrip('.'))}"


def write_help(command: click.Command) -> Iterator[str]:
    """Yield the paragraphs of a verb's help; those after a bare \\b keep their lines."""
    paragraphs = re.split(r"\n\s*\n", (command.help or "").strip())
    for paragraph in paragraphs[1:]:
        if paragraph.lstrip().startswith("\b"):
            heading, *lines = paragraph.replace("\b", "").strip().split("\n")
            yield f".SH {escape(heading.strip().rstrip(':').upper())}"
            yield ".nf"
            yield from (escape(line.strip()) for line in lines)
            yield ".fi"
        else:
            yield ".PP"
            yield escape(" ".join(paragraph.split()))


def write_options(command: click.Command, ctx: click.Context) -> Iterator[str]:
    records = [
        record
        for parameter in command.get_params(ctx)
        if (record := parameter.get_help_record(ctx)) is not None
    ]
    if records:
        yield ".SH OPTIONS"
    for option, text in records:
        yield ".TP"
        yield f".B {escape(option)}"
        yield escape(text)


def write_verb(path: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    """Yield the page of a verb, or of a group of them such as ``gpu``."""
    ctx = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    yield from write_head(path.replace(" ", "-"), command.get_short_help_str(200))
    yield ".SH SYNOPSIS"
    yield f".B {escape(path)}"
    yield escape(" ".join(command.collect_usage_pieces(ctx)))
    yield ".SH DESCRIPTION"
    yield escape(" ".join((command.help or "").strip().split("\n\n")[0].split()))
    yield from write_help(command)
    if isinstance(command, click.Group):
        yield ".SH VERBS"
        for name, verb in command.commands.items():
            yield from (".TP", f".B {escape(name)}", escape(verb.get_short_help_str(200)))
    yield from write_options(command, ctx)
    yield from (".SH SEE ALSO", ".BR arcsup (1)")


def write_main(ctx: click.Context) -> Iterator[str]:
    yield from write_head("arcsup", "supervise QEMU virtual machines that share GPUs")
    yield from (".SH SYNOPSIS", ".B arcsup", escape("[--run DIR] VERB [OPTIONS] [ARGUMENTS]"))
    yield from (".SH DESCRIPTION", escape(cli.help or ""))
    for heading, verbs in VERBS.items():
        yield f".SS {escape(heading)}"
        for name in verbs:
            command = cli.get_command(ctx, name)
            summary = command.get_short_help_str(200) if command else ""
            yield from (".TP", f".BR arcsup\\-{escape(name)} (1)", escape(summary))
    yield from write_options(cli, ctx)
    for title, entries in (("FILES", FILES), ("EXIT STATUS", EXIT_CODES)):
        yield f".SH {title}"
        for name, meaning in entries.items():
            shown = name if isinstance(name, str) else str(int(name))
            yield from (".TP", f".B {escape(shown)}", escape(meaning))


def make_pages() -> Iterator[tuple[str, str]]:
    """Yield the name and text of each page."""
    ctx = click.Context(cli, info_name="arcsup")
    yield "arcsup.1", "\n".join(write_main(ctx)) + "\n"
    for name in cli.list_commands(ctx):
        command = cli.get_command(ctx, name)
        if command is None:
            continue
        yield f"arcsup-{name}.1", "\n".join(write_verb(f"arcsup {name}", command, ctx)) + "\n"
        for below, verb in command.commands.items() if isinstance(command, click.Group) else ():
            within = click.Context(command, info_name=name, parent=ctx)
            page = write_verb(f"arcsup {name} {below}", verb, within)
            yield f"arcsup-{name}-{below}.1", "\n".join(page) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for page, text in make_pages():
        (folder / page).write_text(text)
