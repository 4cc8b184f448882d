"""The kernel's words about processes that it killed, as captured from real logs."""

from pathlib import Path

from arcsup.host.kmsg import (
    LogRecord,
    parse_limit_kills,
    parse_oom_kills,
    parse_record,
    read_kernel_log,
)

HOST = (
    "3,1201,88224515,-;Out of memory: Killed process 4711 (qemu-system-x86) total-vm:9234567kB,"
    " anon-rss:8012345kB, file-rss:0kB, shmem-rss:4kB, UID:0 pgtables:16384kB oom_score_adj:0\n"
)
CGROUP = (
    "3,1300,99224515,-;Memory cgroup out of memory: Killed process 815 (qemu-system-x86)"
    " total-vm:1234567kB, anon-rss:512345kB, file-rss:0kB, shmem-rss:0kB, UID:0\n"
)
SCOPE = "/machine.slice/arcsup-win-815.scope"
LIMIT = (
    "6,1299,99224510,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),"
    f"cpuset=arcsup-win-815.scope,mems_allowed=0,oom_memcg={SCOPE},task_memcg={SCOPE},"
    "task=qemu-system-x86,pid=815,uid=993\n"
)
HOST_LIMIT = (
    "6,1200,88224510,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,"
    f"mems_allowed=0,global_oom,task_memcg={SCOPE},task=qemu-system-x86,pid=4711,uid=993\n"
)
OTHER = "6,1,0,-;Linux version 6.1.0\n4,1299,99,-;oom_reaper: reaped process 42 (qemu)\n"


def test_kills_for_want_of_memory_are_found_by_pid() -> None:
    assert parse_oom_kills(OTHER + HOST + CGROUP) == {4711, 815}
    assert parse_oom_kills(OTHER) == frozenset()


def test_kills_at_a_groups_own_limit_are_told_from_those_for_others() -> None:
    log = OTHER + HOST_LIMIT + HOST + LIMIT + CGROUP
    assert parse_limit_kills(log, SCOPE) == {815}
    assert parse_limit_kills(log, "/machine.slice/arcsup-win-816.scope") == frozenset()
    assert parse_limit_kills(log.replace("=/machine", "=/docker/1/machine"), SCOPE) == {815}


def test_where_the_log_may_not_be_read_nothing_is_known(tmp_path: Path) -> None:
    assert read_kernel_log(tmp_path / "none") == ""


def test_a_record_has_its_time_its_text_and_who_wrote_it() -> None:
    dictionary = b" SUBSYSTEM=pci\n DEVICE=+pci:0000:2b:00.0\n"
    raw = b"4,1299,12500000,-;NVRM: Xid (PCI:0000:2b:00): 79\n"
    assert parse_record(raw + dictionary) == LogRecord(0, 12.5, "NVRM: Xid (PCI:0000:2b:00): 79")
    written_by_a_program = parse_record(b"12,1300,13000000,-;NVRM: Xid (PCI:0000:2b:00): 79\n")
    assert written_by_a_program is not None
    assert written_by_a_program.facility == 1
    assert parse_record(b"") is None
    assert parse_record(b"no record\n") is None
