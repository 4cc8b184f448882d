"""The long views for people: one VM in the manner of systemctl status, the chain of why."""

from collections import Counter
from collections.abc import Sequence

from arcsup.cli.output import format_age, format_seconds, paint, paint_state, parse_time, plain
from arcsup.control.shapes import (
    LastExitJson,
    ReportJson,
    SliceJson,
    StatusJson,
    VmJson,
    WhyJson,
)

_LABEL_WIDTH = 12


def print_status(vm: StatusJson, *, wide: bool) -> None:
    """Write one VM; ``wide`` adds its command line."""
    state = paint_state(vm["state"])
    dot = paint_state(vm["state"], "●" if vm["pid"] is not None else "○")
    print(f"{dot} {vm['name']}: {state} since {format_moment(vm['since'])}")
    for label, text in _describe(vm, wide=wide):
        print(f"{label:>{_LABEL_WIDTH}}{':' if label else ' '} {plain(text)}")
    if vm["events"]:
        print()
        for event in vm["events"]:
            print(f"{format_moment(event['time'])}  {event['kind']}  {plain(event['message'])}")


def _describe(vm: StatusJson, *, wide: bool) -> list[tuple[str, str]]:
    """Return labels and texts; an empty label goes on with the one above."""
    lines = [("Reason", vm["reason"])] if vm["reason"] else []
    lines.append(("File", vm["file"]))
    if vm["mode"]:
        lines.append(("Mode", f"{', '.join(vm['mode'])}; for this run, until it was stopped"))
    if vm["pendingKeys"]:
        keys = ", ".join(vm["pendingKeys"])
        lines.append(("Pending", f"{keys}; arcsup restart {vm['name']} applies it"))
    if vm["pid"] is not None:
        lines.append(("PID", f"{vm['pid']}{' (adopted)' if vm['adopted'] else ''}"))
    lines.append(("Restarts", str(vm["restarts"])))
    if vm["lastExit"] is not None:
        lines.append(("Last exit", describe_exit(vm["lastExit"])))
    if vm["nextTry"] is not None:
        lines.append(("Next try", format_clock(vm["nextTry"])))
    if vm["uuid"] is not None:
        lines.append(("UUID", vm["uuid"]))
    if vm["numaNode"] is not None:
        lines.append(("NUMA node", str(vm["numaNode"])))
    if vm["cgroup"] is not None:
        lines.append(("CGroup", vm["cgroup"]["path"]))
    lines += _group("GPU", [_describe_slice(gpu) for gpu in vm["gpus"]])
    sockets = [("qmp", vm["qmpSocket"]), ("monitor", vm["monitorSocket"])]
    sockets.append(("console", vm["consoleSocket"]))
    lines += _group("Sockets", [f"{name} {path}" for name, path in sockets if path])
    lines += _group(
        "Conditions",
        [
            f"{condition['type']}={'yes' if condition['status'] else 'no'}"
            f" {condition['reason']}: {condition['message']}"
            for condition in vm["conditions"]
        ],
    )
    if wide and vm["argv"]:
        # Not needed in the short view, which is why it is imported here.
        from shlex import join

        lines.append(("Command", join(vm["argv"])))
    return lines


def _group(label: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    return [("" if number else label, text) for number, text in enumerate(texts)]


def _describe_slice(gpu: SliceJson) -> str:
    words = [gpu["kind"], gpu["type"] or "", gpu["id"]]
    words += ["on", gpu["parent"]] if gpu["parent"] else []
    words += [f"({gpu['vramMiB']} MiB)"] if gpu["vramMiB"] is not None else []
    return " ".join(word for word in words if word)


def describe_exit(end: LastExitJson) -> str:
    """Return how the last QEMU ended."""
    how = f" (signal {end['signal']})" if end["signal"] is not None else ""
    if end["code"] is not None:
        how = f" (exit code {end['code']})"
    detail = f": {end['detail']}" if end["detail"] else ""
    return f"{end['class']}{how} {format_age(end['at'])} ago{detail}"


def print_why(answer: WhyJson) -> None:
    """Write the chain, each cause indented below its effect."""
    if answer["asDesired"]:
        because = f": {answer['chain'][0]['because']}" if answer["chain"] else ""
        print(plain(f"{answer['name']} is {answer['state']}, as desired{because}"))
        return
    for depth, link in enumerate(answer["chain"]):
        indent = "  " * depth
        since = f" (since {format_age(link['since'])})" if link["since"] else ""
        print(plain(f"{indent}{link['what']}{since}"))
        print(plain(f"{indent}  because {link['because']}"))
        if link["nextAction"]:
            at = f" at {format_clock(link['at'])}" if link["at"] else ""
            print(plain(f"{indent}  next: {link['nextAction']}{at}"))


def print_report(report: ReportJson, vms: Sequence[VmJson]) -> None:
    """Write the daemon's own state and how many VMs are in which state."""
    states = Counter(vm["state"] for vm in vms)
    counts = ", ".join(f"{count} {paint_state(state)}" for state, count in sorted(states.items()))
    dot = paint("●", "yellow" if report["findings"] else "green")
    print(f"{dot} arcsup {report['version']}: up {format_seconds(report['uptimeSeconds'])}")
    lines = [("PID", str(report["pid"])), ("VMs", counts or "none")]
    lines += _group("Places", [f"{name} {path}" for name, path in report["places"].items()])
    lines += _group("Findings", [plain(finding) for finding in report["findings"]])
    for label, text in lines:
        print(f"{label:>{_LABEL_WIDTH}}{':' if label else ' '} {text}")


def format_clock(text: str) -> str:
    """Return an RFC 3339 time in local time."""
    return parse_time(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def format_moment(text: str) -> str:
    """Return an RFC 3339 time in local time and how long ago it was."""
    return f"{format_clock(text)} ({format_age(text)} ago)"
