"""The Debian installer's preseed file.

Source: Debian GNU/Linux Installation Guide, appendix B; "Loading preconfiguration files": one in
the initrd is read first of all, so that no question comes before it.
"""

from arcsup.model import DiskBus
from arcsup.unattended.wishes import Wishes

KERNEL, INITRD = "/install.amd/vmlinuz", "/install.amd/initrd.gz"
"""Where Debian's amd64 installers have them on the ISO."""

CMDLINE = "auto=true priority=critical vga=788 --- quiet"

_DEVICES = {DiskBus.VIRTIO: "/dev/vda", DiskBus.NVME: "/dev/nvme0n1"}


def write_preseed(wishes: Wishes, password_hash: str, bus: DiskBus) -> str:
    """Return the file. The whole first disk is used, and the guest powers off at the end."""
    answers = [
        f"debian-installer/locale string {wishes.locale}.UTF-8",
        f"keyboard-configuration/xkb-keymap select {wishes.keyboard}",
        "netcfg/choose_interface select auto",
        f"netcfg/get_hostname string {wishes.host}",
        "netcfg/get_domain string",
        f"netcfg/hostname string {wishes.host}",
        "mirror/country string manual",
        "mirror/http/hostname string deb.debian.org",
        "mirror/http/directory string /debian",
        "mirror/http/proxy string",
        "passwd/root-login boolean false",
        f"passwd/user-fullname string {wishes.user}",
        f"passwd/username string {wishes.user}",
        f"passwd/user-password-crypted password {password_hash}",
        "clock-setup/utc boolean true",
        f"time/zone string {wishes.timezone}",
        f"partman-auto/disk string {_DEVICES.get(bus, '/dev/sda')}",
        "partman-auto/method string regular",
        "partman-auto/choose_recipe select atomic",
        "partman-partitioning/confirm_write_new_label boolean true",
        "partman/choose_partition select finish",
        "partman/confirm boolean true",
        "partman/confirm_nooverwrite boolean true",
        "apt-setup/cdrom/set-first boolean false",
        "popularity-contest/participate boolean false",
        "pkgsel/include string openssh-server qemu-guest-agent",
        "grub-installer/only_debian boolean true",
        "grub-installer/bootdev string default",
        "finish-install/reboot_in_progress note",
        "debian-installer/exit/poweroff boolean true",
    ]
    lines = [f"d-i {answer}" for answer in answers]
    lines.append("tasksel tasksel/first multiselect standard, ssh-server")
    if wishes.ssh_keys:
        lines.append(f"d-i preseed/late_command string {_keys_command(wishes)}")
    return "\n".join([*lines, ""])


def _keys_command(wishes: Wishes) -> str:
    # Names and keys hold nothing that a shell acts on: Wishes and read_ssh_keys saw to that.
    folder = f"/home/{wishes.user}/.ssh"
    commands = [f"mkdir -p -m 700 /target{folder}"]
    commands += [f"echo '{key}' >>/target{folder}/authorized_keys" for key in wishes.ssh_keys]
    commands.append(f"in-target chown -R {wishes.user}: {folder}")
    return "; ".join(commands)
