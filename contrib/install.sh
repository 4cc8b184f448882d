#!/bin/bash
# Install arcsup on this host and make the host ready for VMs, as `arcsup setup` would.
#
# usage: contrib/install.sh [options of `arcsup setup`, such as --gpu-sharing gvt-g]
#
# On Debian and Ubuntu as a package (one in dist/ is taken, else it is built), elsewhere by
# `make install`. A vendor's driver package belongs into /var/lib/arcsup/vendor first. Shows what
# setup would do, and asks before it does that, unless nobody is there to be asked.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"

if [[ $EUID -ne 0 ]]; then
    exec sudo "$top/contrib/install.sh" "$@"
fi

# Whether the package's Python can be had; on a fresh system none is there yet.
is_for_package() {
    command -v apt-get >/dev/null || return
    apt-get -qq -o DPkg::Lock::Timeout=300 update
    local candidate
    candidate=$(LC_ALL=C apt-cache policy python3 | sed -n 's/^ *Candidate: //p')
    [[ $candidate == [0-9]* ]] && dpkg --compare-versions "$candidate" ge 3.11
}

if is_for_package; then
    shopt -s nullglob
    packages=(dist/arcsup_*.deb)
    if [[ ${#packages[@]} -eq 0 ]]; then
        make deb
        packages=(dist/arcsup_*.deb)
    fi
    # apt reads it as its own user, who may not look into a home directory.
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    chmod 755 "$folder"
    install -m644 "${packages[-1]}" "$folder/arcsup.deb"
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install --yes \
        --no-remove "$folder/arcsup.deb"
else
    make install
fi

arcsup setup "$@"
if [[ -t 0 ]]; then
    read -r -p 'Do that now? [y/N] ' answer
    [[ $answer == [yY]* ]] || exit 0
fi
arcsup setup --apply "$@"
