"""Going on after a reboot: a unit that runs once at the next boot, and takes itself away."""

from pathlib import Path

from arcsup.setup.actions import Action, CreateFile, RunCommand
from arcsup.setup.carry_out import Tell, take_back
from arcsup.setup.choices import Choices
from arcsup.setup.host import Host
from arcsup.setup.journal import Journal
from arcsup.setup.resources import read_resource
from arcsup.setup.steps import SetupPlan, create_directories

UNIT = "arcsup-setup.service"


def plan_resume(host: Host, program: Path, choices: Choices) -> SetupPlan:
    """Return what has setup run once more after the next boot, with the same choices."""
    folder = host.path("/etc/systemd/system")
    if host.find_program("systemctl") is None:
        return SetupPlan()
    actions: list[Action] = []
    if not (folder / UNIT).exists():
        own = "/usr/bin/arcsup setup --resume"
        command = " ".join((str(program), "setup", "--resume", *choices.options))
        text = read_resource(f"contrib/systemd/{UNIT}").replace(own, command)
        actions += (*create_directories(folder, 0o755), CreateFile(str(folder / UNIT), text))
    if not (folder / "multi-user.target.wants" / UNIT).is_symlink():
        enable = RunCommand(("systemctl", "enable", UNIT), ("systemctl", "disable", UNIT))
        actions.append(enable)
    return SetupPlan(tuple(actions))


def end_resume(host: Host, journal: Journal, tell: Tell) -> None:
    """Take the unit away: the reboot has come. Raises ArcsupError."""
    take_back(host, journal, _is_of_resume, tell)


def _is_of_resume(action: Action) -> bool:
    match action:
        case CreateFile(path=path):
            return Path(path).name == UNIT
        case RunCommand(apply=argv):
            return argv[-1] == UNIT
    return False
