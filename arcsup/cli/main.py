"""The command line: verbs found by name and imported only when used, and how errors are told."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import click

from arcsup import __version__
from arcsup.cli.session import Session, tell_error
from arcsup.errors import ArcsupError, ExitCode, SpecError, describe_os_error

VERBS: dict[str, dict[str, str]] = {
    "See": {
        "list": "arcsup.cli.vms:list_",
        "status": "arcsup.cli.vms:status",
        "show": "arcsup.cli.vms:show",
        "why": "arcsup.cli.vms:why",
        "plan": "arcsup.cli.plan:plan",
        "events": "arcsup.cli.watch:events",
        "logs": "arcsup.cli.logs:logs",
    },
    "Act": {
        "create": "arcsup.cli.create:create",
        "start": "arcsup.cli.start:start",
        "stop": "arcsup.cli.operate:stop",
        "kill": "arcsup.cli.operate:kill",
        "restart": "arcsup.cli.operate:restart",
        "adopt": "arcsup.cli.operate:adopt",
        "reset": "arcsup.cli.operate:reset",
        "pause": "arcsup.cli.operate:pause",
        "resume": "arcsup.cli.operate:resume",
        "clear": "arcsup.cli.operate:clear",
        "wait": "arcsup.cli.operate:wait",
    },
    "Reach into a VM": {
        "console": "arcsup.cli.console:console",
        "qmp": "arcsup.cli.monitor:qmp",
        "screenshot": "arcsup.cli.monitor:screenshot",
        "view": "arcsup.cli.view:view",
    },
    "Images": {
        "image": "arcsup.cli.image:image",
        "guest-tools": "arcsup.cli.guest_tools:guest_tools",
    },
    "GPUs": {
        "gpu": "arcsup.cli.gpu:gpu",
        "inventory": "arcsup.cli.gpu:inventory",
    },
    "VM files": {
        "check": "arcsup.cli.files:check",
        "import": "arcsup.cli.import_:import_",
        "qemu": "arcsup.cli.files:qemu",
        "schema": "arcsup.cli.files:schema",
    },
    "The host": {
        "doctor": "arcsup.cli.doctor:doctor",
        "setup": "arcsup.cli.setup:setup",
    },
    "The program": {
        "daemon": "arcsup.cli.daemon:daemon",
        "reload": "arcsup.cli.program:reload",
        "completion": "arcsup.cli.program:completion",
        "version": "arcsup.cli.program:version",
    },
}
"""Every verb, under the heading that ``--help`` shows it with; a verb is one line here."""

ALIASES = {"ls": "list", "ps": "list"}

INTERRUPTED = 128 + 2
BROKEN_PIPE = 128 + 13
"""What a shell reports of a program that SIGINT or SIGPIPE ended."""


class LazyGroup(click.Group):
    """A group whose verbs are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of VERBS."""
        return [name for verbs in VERBS.values() for name in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one verb, None when there is none of that name."""
        name = ALIASES.get(cmd_name, cmd_name)
        for verbs in VERBS.values():
            if name in verbs:
                module, _, attribute = verbs[name].partition(":")
                command = getattr(import_module(module), attribute)
                return command if isinstance(command, click.Command) else None
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb of ``args``; an unknown one is met with the nearest known."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UnknownVerb(args[0], [*self.list_commands(ctx), *ALIASES])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb; when nobody reads its output any more, end as SIGPIPE would."""
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes stdout once more at its end, and would complain there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        return code

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs of each heading with their first lines."""
        for heading, verbs in VERBS.items():
            commands = [(name, self.get_command(ctx, name)) for name in verbs]
            with formatter.section(heading):
                formatter.write_dl(
                    [
                        (name, command.get_short_help_str(70))
                        for name, command in commands
                        if command
                    ]
                )


class UnknownVerb(click.UsageError):
    """There is no such verb."""

    def __init__(self, verb: str, known: list[str]) -> None:
        from difflib import get_close_matches

        near = get_close_matches(verb, known, n=1)
        super().__init__(f"no such verb: {verb}" + (f"; did you mean {near[0]}?" if near else ""))


@click.command(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`arcsup VERB --help` tells more, with an example.",
)
@click.option(
    "--run",
    metavar="DIR",
    help="The daemon's runtime directory; its socket is DIR/arcsup.sock. [ARCSUP_RUN]",
)
@click.version_option(__version__, message="arcsup %(version)s")
@click.pass_context
def cli(ctx: click.Context, run: str | None) -> None:
    """Supervise QEMU virtual machines: drop in a YAML file, get a VM."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(ExitCode.USAGE)
    ctx.obj = Session(run)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are told on stderr."""
    program = Path(sys.argv[0]).name
    program = program if program in {"arcsup", "arcd"} else "arcsup"
    # A name or a message that the terminal's encoding lacks must not end in a traceback.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    try:
        code = cli.main(list(arguments), prog_name=program, standalone_mode=False)
    except SpecError as error:
        # FILE:LINE:COL at the beginning of a line is what editors jump to.
        print(error.message, file=sys.stderr)
        return error.exit_code
    except ArcsupError as error:
        tell_error(error.message, error.hint)
        return error.exit_code
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx else program
        tell_error(error.format_message(), f"{verb} --help")
        return ExitCode.USAGE
    except click.ClickException as error:
        tell_error(error.format_message())
        return ExitCode.FAILED
    except PermissionError as error:
        tell_error(describe_os_error(error), "run as root")
        return ExitCode.NO_PERMISSION
    except OSError as error:
        tell_error(describe_os_error(error))
        return ExitCode.FAILED
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return code if isinstance(code, int) else ExitCode.OK
