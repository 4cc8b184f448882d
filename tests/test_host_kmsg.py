"""The kernel's words about processes that it killed, as captured from real logs."""

from pathlib import Path

from arcsup.host.kmsg import parse_oom_kills, read_kernel_log

HOST = (
    "3,1201,88224515,-;Out of memory: Killed process 4711 (qemu-system-x86) total-vm:9234567kB,"
    " anon-rss:8012345kB, file-rss:0kB, shmem-rss:4kB, UID:0 pgtables:16384kB oom_score_adj:0\n"
)
CGROUP = (
    "3,1300,99224515,-;Memory cgroup out of memory: Killed process 815 (qemu-system-x86)"
    " total-vm:1234567kB, anon-rss:512345kB, file-rss:0kB, shmem-rss:0kB, UID:0\n"
)
OTHER = "6,1,0,-;Linux version 6.1.0\n4,1299,99,-;oom_reaper: reaped process 42 (qemu)\n"


def test_kills_for_want_of_memory_are_found_by_pid() -> None:
    assert parse_oom_kills(OTHER + HOST + CGROUP) == {4711, 815}
    assert parse_oom_kills(OTHER) == frozenset()


def test_where_the_log_may_not_be_read_nothing_is_known(tmp_path: Path) -> None:
    assert read_kernel_log(tmp_path / "none") == ""
