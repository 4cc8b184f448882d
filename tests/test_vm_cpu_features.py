"""What is added to a CPU model: for which guest, in which order, with what it needs."""

import pytest
from attrs import evolve

from arcsup.host.cpu_flags import observe_cpu_flags, parse_cpu_flags
from arcsup.model import Cpus
from arcsup.vm.commandline import build_command_line
from arcsup.vm.cpu_features import ENLIGHTENMENTS, HIDING, SIBLINGS, cpu_features
from arcsup.vm.options import AccelName
from tests.vm_samples import find_resources, make_vm, sample_cases

AMD = frozenset({"topoext", "svm"})


def names(model: str, accel: AccelName, *, hidden: bool = False, threads: int = 1) -> set[str]:
    vm = evolve(make_vm("a"), cpus=Cpus(model=model, threads=threads), hide_hypervisor=hidden)
    return {feature.name for feature in cpu_features(vm, accel, AMD)}


def test_every_feature_says_why_and_from_where_and_has_what_it_needs() -> None:
    known = {feature.name for feature in ENLIGHTENMENTS}

    for feature in (*ENLIGHTENMENTS, *HIDING, SIBLINGS):
        assert feature.why
        assert feature.source
        assert set(feature.needs) <= known


def test_only_kvm_enlightens_and_nobody_enlightens_a_guest_that_is_to_know_nothing() -> None:
    enlightened = {feature.name for feature in ENLIGHTENMENTS}

    assert names("host", "kvm") == enlightened
    assert names("host", "tcg") == set()
    assert names("host", "kvm", hidden=True) == {"kvm", "hypervisor"}
    assert names("host", "tcg", hidden=True) == {"kvm", "hypervisor"}


@pytest.mark.parametrize(
    ("model", "accel", "threads", "there"),
    [
        ("host", "kvm", 2, True),
        ("host", "kvm", 1, False),
        ("host", "tcg", 2, False),
        ("EPYC", "kvm", 2, False),
    ],
)
def test_an_amd_guest_sees_its_threads_as_threads(
    model: str, accel: AccelName, threads: int, there: bool
) -> None:
    assert ("topoext" in names(model, accel, threads=threads)) is there


def test_the_file_has_the_final_word() -> None:
    vm = evolve(make_vm("a"), cpus=Cpus(model="host,hv-stimer=off"))
    argv = build_command_line(vm, find_resources(vm, accel="kvm"))

    assert argv[argv.index("-cpu") + 1].endswith(",hv-stimer=off")


def test_no_vm_has_a_memory_balloon() -> None:
    for vm, host in sample_cases("7.2").values():
        assert not any("balloon" in word for word in build_command_line(vm, host))


def test_flags_are_the_first_processors() -> None:
    assert parse_cpu_flags("processor\t: 0\nflags\t\t: fpu svm\n\nflags\t\t: other\n") == {
        *("fpu", "svm"),
    }
    assert parse_cpu_flags("") == frozenset()
    assert "fpu" in observe_cpu_flags()
