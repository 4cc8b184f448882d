"""Programs for a host's tree that do in it what the real ones do, as far as setup can see.

They run through a fake chroot, which takes them from the tree, and record their arguments.
"""

import os
from pathlib import Path

import pytest
from attrs import frozen

from tests.host_tree import write

CHROOT = r"""#!/bin/sh
ROOT=$1
shift
PATH=$ROOT/usr/bin:$PATH
export ROOT PATH
exec "$@"
"""

APT_GET = r"""
[ ! -e "$ROOT/broken" ] || exit 100
case "$*" in
*update) cp "$ROOT/var/lib/apt/on-servers" "$ROOT/var/lib/apt/known" ;;
*) verb=
   for word; do
       case $word in
       -*|DPkg*) ;;
       install) verb=yes ;;
       *) [ -z "$verb" ] || echo "$word" >>"$ROOT/var/lib/dpkg/names"
          [ -z "$verb" ] || echo "lib$word" >>"$ROOT/var/lib/dpkg/names" ;;
       esac
   done ;;
esac
"""
DPKG_QUERY = r"""
sed 's/^/installed /' "$ROOT/var/lib/dpkg/names"
echo config-files swtpm
"""
DPKG = r"""
shift
[ ! -e "$ROOT/needed" ] || exit 1
for name; do sed -i "/^$name\$/d" "$ROOT/var/lib/dpkg/names"; done
"""
APT_CACHE = r"""
for name; do :; done
# Of what other packages mention there is nothing to write, and nothing wrong.
grep -x "$name" "$ROOT/var/lib/apt/known" || grep -qsx "$name" "$ROOT/var/lib/apt/mentioned"
"""
GROUPADD = r"""
echo "$2:x:999:" >>"$ROOT/etc/group"
"""
GROUPDEL = r"""
sed -i "/^$1:/d" "$ROOT/etc/group"
"""
UPDATE_GRUB = r"""
cat "$ROOT/etc/default/grub" "$ROOT"/etc/default/grub.d/*.cfg >"$ROOT/boot/grub/grub.cfg" \
    2>/dev/null || :
"""
KERNEL_INSTALL = r"""
(echo "linux $3"; echo "options $(cat "$ROOT/etc/kernel/cmdline" 2>/dev/null)") \
    >"$ROOT/boot/loader/entries/$2.conf"
"""
SYSTEMCTL = r"""
wants=$ROOT/etc/systemd/system/multi-user.target.wants
for unit; do :; done
case $1 in
enable) ln -sf "../$unit" "$wants/$unit" ;;
disable) rm -f "$wants/$unit" ;;
esac
"""
USERADD = r"""
for name; do :; done
echo "$name:x:998:998::/nonexistent:/usr/sbin/nologin" >>"$ROOT/etc/passwd"
"""
USERDEL = r"""
sed -i "/^$1:/d" "$ROOT/etc/passwd"
"""

PROGRAMS = {
    "apt-get": APT_GET,
    "dpkg-query": DPKG_QUERY,
    "dpkg": DPKG,
    "apt-cache": APT_CACHE,
    "groupadd": GROUPADD,
    "groupdel": GROUPDEL,
    "useradd": USERADD,
    "userdel": USERDEL,
    "systemctl": SYSTEMCTL,
}

LOOKING = {"dpkg-query", "apt-cache"}
"""They change nothing, so what they are asked is not recorded."""


@frozen
class Recorder:
    """What was run in the tree."""

    file: Path

    def calls(self, program: str = "") -> list[str]:
        """Return the command lines so far, those of one program or all."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [line for line in lines if line.startswith(program)]


def record(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Put the fake chroot on PATH and return what will have been run."""
    write(directory, "bin/chroot", CHROOT, 0o755)
    monkeypatch.setenv("PATH", f"{directory / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(directory / "record"))
    return Recorder(directory / "record")


def add_program(root: Path, name: str, script: str) -> None:
    """Put one program into the tree."""
    recording = "" if name in LOOKING else f'echo "{name} $*" >>"$RECORD"\n'
    write(root, f"usr/bin/{name}", f"#!/bin/sh\n{recording}{script}", 0o755)


def add_programs(root: Path) -> None:
    """Put a Debian's programs into the tree, with no package of VMs and fresh lists."""
    for name, script in PROGRAMS.items():
        add_program(root, name, script)
    known = "qemu-system-x86\nqemu-utils\novmf\nswtpm\nvirtiofsd\n"
    write(root, "var/lib/dpkg/names", "base-files\nlibc6\n")
    write(root, "var/lib/apt/on-servers", known)
    write(root, "var/lib/apt/known", known)
    write(root, "etc/group", "root:x:0:\nkvm:x:104:\n")
    write(root, "etc/passwd", "root:x:0:0::/root:/bin/sh\n")
    (root / "run/systemd/system").mkdir(parents=True)
    (root / "etc/systemd/system/multi-user.target.wants").mkdir(parents=True)


def add_grub(root: Path) -> None:
    """Make the tree boot with Debian's GRUB."""
    add_program(root, "update-grub", UPDATE_GRUB)
    write(root, "usr/bin/grub-mkconfig", "for x in ${sysconfdir}/default/grub.d/*.cfg; do\n", 0o755)
    write(root, "etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT=quiet\n")
    write(root, "boot/grub/grub.cfg", "GRUB_CMDLINE_LINUX_DEFAULT=quiet\n")


def add_systemd_boot(root: Path, release: str, cmdline: str = "") -> None:
    """Make the tree boot with systemd-boot; ``cmdline`` "" leaves /etc/kernel/cmdline away."""
    add_program(root, "kernel-install", KERNEL_INSTALL)
    write(root, f"boot/vmlinuz-{release}", "kernel")
    options = f"options {cmdline}\n"
    write(root, f"boot/loader/entries/{release}.conf", f"linux /boot/vmlinuz-{release}\n{options}")
    if cmdline:
        write(root, "etc/kernel/cmdline", f"{cmdline}\n", 0o600)
