"""The verb doctor: what this host has, lacks, and how to mend it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from arcsup.cli.output import output_options, paint, plain, print_data
from arcsup.cli.places import PlaceOptions, find_places, place_options
from arcsup.cli.session import Session
from arcsup.errors import ExitCode
from arcsup.places import Places

if TYPE_CHECKING:
    from arcsup.setup.doctor import Examined
    from arcsup.setup.findings import Finding
    from arcsup.setup.host import Host

_MARKS = {
    "ok": ("✓", "green"),
    "info": ("·", "cyan"),
    "warning": ("!", "yellow"),
    "error": ("✗", "red"),
}


class FindingJson(TypedDict):
    """One thing that ``doctor`` has to say; ``level`` is ok, info, warning or error."""

    check: str
    title: str
    level: str
    what: str
    why: str
    do: str


root_option = click.option(
    "--root",
    type=click.Path(
        path_type=Path, readable=False, exists=True, file_okay=False, resolve_path=True
    ),
    metavar="DIR",
    help="A system whose files are below DIR, instead of this one.",
)


@click.command()
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, readable=False, dir_okay=False, resolve_path=True),
    metavar="FILE",
    help="Write a support archive (.tar.gz) too.",
)
@root_option
@place_options
@output_options
@click.pass_obj
def doctor(
    session: Session,
    bundle: Path | None,
    root: Path | None,
    output: str,
    **options: Unpack[PlaceOptions],
) -> int:
    """Look whether this host can run VMs, and say how to mend what it lacks.

    Reads and changes nothing. ✓ is as it should be, · needs nothing done, ! takes something away
    from some VMs, ✗ stands in the way. Exits with 1 when there is any ✗.

    --bundle gathers what somebody needs who is to help: these findings, the inventory of GPUs,
    configuration and VM files, the journal of setup, events, logs, versions. Passwords, tokens and
    keys are taken out; look through it before you give it away all the same.

    \b
    Example:
      arcsup doctor
      sudo arcsup doctor --bundle /tmp/arcsup.tar.gz
      sudo arcsup doctor -o json | jq '.[] | select(.level == "error")'
    """
    from arcsup.setup.doctor import examine

    host = find_host(session, root, **options)
    found: list[FindingJson] = []
    for_people = output in {"table", "wide"}
    heading = ""
    for examined in examine(host):
        found.extend(_as_json(examined))
        # A guest under KVM takes its time: what is known is told meanwhile.
        if for_people:
            if examined.heading != heading:
                heading = examined.heading
                print(heading)
            for finding in examined.findings:
                _tell(finding)
    errors = [finding for finding in found if finding["level"] == "error"]
    if for_people:
        warnings = sum(finding["level"] == "warning" for finding in found)
        print(f"✗ {len(errors)}  ! {warnings}")
    print_data(output, found, list(dict.fromkeys(finding["check"] for finding in errors)))
    if bundle is not None:
        from arcsup.setup.bundle import write_bundle

        names = write_bundle(host, bundle, found)
        print(f"wrote {bundle}: {len(names)} files, secrets removed", file=sys.stderr)
    return ExitCode.FAILED if errors else ExitCode.OK


def find_host(session: Session, root: Path | None, **options: Unpack[PlaceOptions]) -> "Host":
    """Return the host that the options mean; below ``--root`` it is always a whole system's."""
    from dataclasses import replace

    from arcsup.setup.host import Host, rebase
    from arcsup.spec.config import load_config

    if root is None or root == Path("/"):
        places, _ = find_places(session.run, **options)
        return Host(places)
    default = Places.default(system=True)
    settings = load_config(options["config"] or rebase(default, root).config)
    configured = replace(
        default,
        vms=settings.vm_dir or default.vms,
        run=settings.runtime_dir or default.run,
        state=settings.state_dir or default.state,
        log=settings.log_dir or default.log,
    )
    below = rebase(configured, root)
    return Host(
        replace(
            below,
            config=(options["config"] or below.config).absolute(),
            vms=(options["vms"] or below.vms).absolute(),
            run=(options["run"] or below.run).absolute(),
            state=(options["state"] or below.state).absolute(),
            log=(options["log_dir"] or below.log).absolute(),
            sysfs=(options["sysfs"] or below.sysfs).absolute(),
        ),
        root=root,
    )


def _as_json(examined: "Examined") -> list[FindingJson]:
    return [
        {
            "check": examined.check.id,
            "title": examined.check.title,
            "level": finding.level.value,
            "what": finding.what,
            "why": finding.why,
            "do": finding.do,
        }
        for finding in examined.findings
    ]


def _tell(finding: "Finding") -> None:
    mark, colour = _MARKS[finding.level.value]
    print(f"  {paint(mark, colour)} {plain(finding.what)}")
    if finding.why:
        print(f"      {plain(finding.why)}")
    if finding.do:
        print(f"      → {plain(finding.do)}")
