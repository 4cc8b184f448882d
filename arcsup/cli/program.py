"""Verbs about the program itself: version, reload, completion."""

import click

from arcsup import __version__
from arcsup.cli.output import output_options, print_data
from arcsup.cli.session import Session
from arcsup.control.shapes import ReloadedJson
from arcsup.errors import ExitCode, UsageError


@click.command()
@output_options
def version(output: str) -> int:
    """Print the version of the program.

    `arcsup status` shows that of the daemon.

    \b
    Example:
      arcsup version --json
    """
    if not print_data(output, {"version": __version__}, [__version__]):
        print(f"arcsup {__version__}")
    return ExitCode.OK


@click.command()
@click.pass_obj
def reload(session: Session) -> int:
    """Make the daemon read its configuration and every VM file again.

    It does so by itself when a VM file changes; this is for the configuration. VMs that run
    keep the user that they run as; their next start has the one of the configuration. What only a
    daemon takes that is started again is named.

    \b
    Example:
      arcsup reload
    """
    answer: ReloadedJson = session.client.post("/v1/reload")
    if answer["later"]:
        later = ", ".join(answer["later"])
        click.echo(f"taken when the daemon is started again: {later}", err=True)
    return ExitCode.OK


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> int:
    """Print the completion script for a shell.

    It completes verbs, options and the names of VMs.

    \b
    Example:
      arcsup completion bash > /etc/bash_completion.d/arcsup
    """
    from click.shell_completion import get_completion_class

    root = ctx.find_root()
    program = root.info_name or "arcsup"
    complete = get_completion_class(shell)
    if complete is None:
        raise UsageError(f"no completion for {shell}")
    variable = f"_{program}_COMPLETE".upper()
    print(complete(root.command, {}, program, variable).source())
    return ExitCode.OK
