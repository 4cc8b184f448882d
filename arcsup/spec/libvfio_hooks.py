"""LibVF.IO's command lists as hooks.

LibVF.IO joins the words of a command with spaces and has a shell run them, as root without asking
where ``is_root`` is true. Here a plain program is run as such; only what needs a shell (``&``, a
program without a path) gets one. Who runs it is the hook rule's business (``vm/hooks.py``).
"""

import re

from arcsup.spec.draft import Draft, Keys, Value
from arcsup.spec.libvfio_keys import Config, Program, Programs
from arcsup.spec.libvfio_tree import Places

_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]*")
"""What a shell takes as it is."""

SHELL = "/bin/sh"


def translate_hooks(config: Config, draft: Draft, places: Places) -> None:
    """Add the hooks of a file to its draft, with notes on what is otherwise than it was."""
    hooks: Keys = {}
    lists = [
        ("startupCommands", "preStart", config.startup_commands),
        ("teardownCommands", "postStop", config.teardown_commands),
    ]
    if config.startapp:
        lists.append(("appCommands", "postStart", config.app_commands))
    elif config.app_commands:
        message = "is not carried over: startapp is false, and there is no `arcd app`"
        draft.note(places.mark("appCommands"), "appCommands", message)
    if config.install_commands:
        message = "is not carried over: nothing is run after an installation"
        draft.note(places.mark("installCommands"), "installCommands", message)
    shells: list[str] = []
    for key, moment, programs in lists:
        argvs: list[Value] = []
        for number, one in enumerate(programs):
            for position, program in enumerate(one.list):
                path = f"{key}[{number}].list[{position}]"
                argv = _argv(program, config.ssh_port)
                argvs.append(places.at(path, argv))
                shells += [path] if argv[0] == SHELL else []
        if argvs:
            hooks[moment] = places.at(key, argvs)
    if not hooks:
        return
    draft.keys["hooks"] = hooks
    if shells:
        message = f"is run by {SHELL}: the hook rule looks at the shell, not at what it starts"
        draft.note(places.mark(shells[0]), shells[0], message)
    _note_rights([(key, programs) for key, _, programs in lists], draft, places)


def _note_rights(
    lists: list[tuple[str, tuple[Programs, ...]]], draft: Draft, places: Places
) -> None:
    """Say once who runs the commands."""
    path = next(
        (
            f"{key}[{number}].is_root"
            for key, programs in lists
            for number, one in enumerate(programs)
            if one.is_root
        ),
        "",
    )
    first = path or next(key for key, programs in lists if programs)
    rule = "this file and the program must belong to root if the daemon is root's"
    what = "gives no rights" if path else "are run as hooks"
    draft.note(places.mark(first), first, f"{what}: commands run as the daemon's user, and {rule}")


def _argv(program: Program, ssh_port: int) -> list[Value]:
    known = {"#uuid#": '"$ARCSUP_UUID"', "#ssh#": str(ssh_port)}
    words = [program.exec, *(known.get(word, word) for word in program.args)]
    plain = all(_PLAIN.fullmatch(word) for word in words) and all(words)
    if plain and program.exec.startswith("/"):
        return list(words)
    return [SHELL, "-c", " ".join(words)]
