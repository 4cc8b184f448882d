from prometheus_client.parser import text_string_to_metric_families

from arcsup.control.metrics import Metrics
from arcsup.model import ExitClass, State
from tests.fake_supervisor import make_status


def read(metrics: Metrics, *states: State) -> dict[tuple[str, ...], float]:
    statuses = [make_status(f"vm{n}", state) for n, state in enumerate(states)]
    text = metrics.expose(statuses).decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_state_has_a_line_also_when_no_vm_is_in_it() -> None:
    metrics = Metrics("1.2.3")

    samples = read(metrics, State.RUNNING, State.RUNNING, State.FAILED)

    counts = {key[1]: value for key, value in samples.items() if key[0] == "arcsup_vms"}
    assert counts == {state.value: 0 for state in State} | {"running": 2, "failed": 1}
    assert read(metrics)["arcsup_vms", "running"] == 0


def test_what_the_daemon_observes_is_exposed() -> None:
    metrics = Metrics("1.2.3")
    metrics.count_restart("web", ExitClass.CRASH)
    metrics.count_restart("web", ExitClass.CRASH)
    metrics.observe_time_to_running(0.12)
    metrics.observe_reconcile(0.002)
    metrics.count_event_seen("files")
    metrics.count_adopted()

    samples = read(metrics)

    assert samples["arcsup_restarts_total", "crash", "web"] == 2
    assert samples["arcsup_time_to_running_seconds_sum",] == 0.12
    assert samples["arcsup_reconcile_seconds_count",] == 1
    assert samples["arcsup_events_seen_total", "files"] == 1
    assert samples["arcsup_adopted_total",] == 1
    assert samples["arcsup_build_info", "1.2.3"] == 1


def test_the_series_of_a_vm_that_is_gone_are_dropped() -> None:
    metrics = Metrics("1.2.3")
    metrics.count_restart("web", ExitClass.CRASH)
    metrics.count_restart("db", ExitClass.CRASH)

    metrics.forget("web")

    samples = read(metrics)
    assert ("arcsup_restarts_total", "crash", "web") not in samples
    assert ("arcsup_restarts_total", "crash", "db") in samples


def test_two_daemons_in_one_process_have_their_own_metrics() -> None:
    one, other = Metrics("1"), Metrics("2")
    one.count_adopted()

    assert read(other)["arcsup_adopted_total",] == 0
