#!/bin/sh
# Installs in a Linux guest what arcsup's guests need: agents, and no sleeping. Asks nothing, may
# be run again. The drivers (VirtIO, shared memory) are in the kernel.
set -eu

if [ "$(id -u)" -ne 0 ]; then
    echo "run as root: sudo sh $0" >&2
    exit 1
fi

has() {
    command -v "$1" >/dev/null 2>&1
}

if has apt-get; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update
    apt-get install --yes qemu-guest-agent spice-vdagent
elif has dnf; then
    dnf install --assumeyes qemu-guest-agent spice-vdagent
elif has zypper; then
    zypper --non-interactive install qemu-guest-agent spice-vdagent
elif has pacman; then
    pacman --sync --noconfirm --needed qemu-guest-agent spice-vdagent
else
    echo "no package manager that is known here: install qemu-guest-agent and spice-vdagent" >&2
    exit 1
fi

if has systemctl; then
    # The agent starts when its device appears; right now it is there already.
    systemctl start qemu-guest-agent.service || echo "qemu-guest-agent starts with the next boot"
    # A guest that sleeps looks like one that hangs, and nobody can press its power button.
    systemctl mask sleep.target suspend.target hibernate.target hybrid-sleep.target
fi
echo "done"
