import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from arcsup.control.views import view_event, view_status, view_time, view_vm, view_why
from arcsup.model import State, VmName, Why, WhyLink
from tests.fake_supervisor import START, make_crashed, make_event, make_status


def test_times_are_rfc_3339_in_utc() -> None:
    zone = timezone(timedelta(hours=2))

    assert view_time(datetime(2026, 3, 1, 14, 0, 0, 123456, zone)) == "2026-03-01T12:00:00.123Z"


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="without a zone"):
        view_time(datetime(2026, 3, 1))


def test_list_shows_the_keys_of_the_contract() -> None:
    assert view_vm(make_status("web")) == {
        "name": "web",
        "state": "running",
        "reason": "",
        "since": "2026-03-01T12:00:00.000Z",
        "pid": 4242,
        "restarts": 0,
        "gpus": [],
        "file": "/etc/arcsup/vms/web.yaml",
        "pending": False,
        "mode": [],
    }


@pytest.mark.parametrize("state", list(State))
def test_the_reason_is_empty_only_while_running(state: State) -> None:
    assert bool(view_vm(make_status("web", state))["reason"]) is (state is not State.RUNNING)


def test_status_shows_all_there_is_with_the_last_ten_events() -> None:
    view = view_status(make_crashed("db"))

    assert view["gpus"] == [
        {
            "kind": "vgpu",
            "type": "nvidia-64",
            "id": "0a1b",
            "parent": "0000:41:00.0",
            "vramMiB": 2048,
        }
    ]
    assert view["lastExit"] == {
        "class": "crash",
        "code": None,
        "signal": 11,
        "at": "2026-03-01T12:00:00.000Z",
        "detail": "killed by SIGSEGV",
        "forced": False,
    }
    assert view["nextTry"] == "2026-03-01T12:00:04.000Z"
    assert view["pending"] is True
    assert view["pendingKeys"] == ["memory", "disks[0].path"]
    assert [event["message"] for event in view["events"]] == [f"event {n}" for n in range(2, 12)]
    assert json.loads(json.dumps(view)) == view


def test_what_is_not_there_is_null() -> None:
    view = view_status(make_status("web", State.STOPPED, uuid=None))

    keys = ("pid", "uuid", "numaNode", "lastExit", "nextTry")
    assert {key: value for key, value in view.items() if key in keys} == dict.fromkeys(keys)


def test_events_and_why_have_the_keys_of_the_contract() -> None:
    event = view_event(make_event("hello"))
    why = view_why(
        Why(VmName("a"), State.WAITING, False, (WhyLink("a", "b", START, "c", datetime.now(UTC)),))
    )

    assert list(event) == ["time", "vm", "kind", "message", "data"]
    assert event["vm"] is None
    assert list(why) == ["name", "state", "asDesired", "chain"]
    assert list(why["chain"][0]) == ["what", "because", "since", "nextAction", "at"]
