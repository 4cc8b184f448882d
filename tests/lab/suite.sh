# shellcheck shell=bash
# A Debian suite of its own in CACHE/root: its kernel, its QEMU (outside and inside), its Python.
# Sourced by run after prepare.sh, which says what is set.

readonly suite_packages=ca-certificates,kmod,udev,busybox-static,gcc,make,python3,qemu-system-x86,qemu-system-modules-spice,qemu-utils,iproute2,swtpm

make_system() {
    need_packages mmdebstrap:mmdebstrap
    say "making a Debian $suite in the cache"
    rm -rf "${sysroot:?}"
    mmdebstrap --quiet --variant=apt --mode=root --include="$suite_packages" \
        --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$suite" "$sysroot" http://deb.debian.org/debian
    # It leaves no lists of packages behind.
    in_sysroot apt-get update -qq
    echo "$suite_packages" >"$sysroot/.complete"
}

# What this checkout asks for beyond those that the system was made for.
add_packages() {
    say "adding packages to the Debian $suite in the cache"
    in_sysroot apt-get update -qq
    in_sysroot env DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq \
        --no-install-recommends ${suite_packages//,/ } >/dev/null
    echo "$suite_packages" >"$sysroot/.complete"
}

# Whether the system in CACHE has what this checkout asks for; only looks.
has_packages() {
    [[ -e $sysroot/.complete && $(<"$sysroot/.complete") == "$suite_packages" ]]
}

# What the checkout needs of Python's packages, for the suite's Python, by the host's pip.
install_python_packages() {
    local version needs
    version=$(in_sysroot python3 -c 'import sys; print("{}.{}".format(*sys.version_info))')
    mapfile -t needs < <("$top/.venv/bin/python" -c '
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
tests = [need for need in project["optional-dependencies"]["test"] if need.startswith("pytest")]
print(*project["dependencies"], *tests, sep="\n")' "$top/pyproject.toml")
    say "installing Python packages for $version"
    "$top/.venv/bin/python" -m pip install --quiet --quiet --upgrade --target "$sysroot/opt/arcsup" \
        --python-version "$version" --only-binary :all: \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 "${needs[@]}"
}

# The suite's QEMU runs on the host with its own libraries.
make_qemu_wrapper() {
    local libraries=$sysroot/usr/lib/x86_64-linux-gnu
    # No here-document: a line with #! would make a script of this file to linters.
    printf '%s\n' '#!/bin/sh' \
        "QEMU_MODULE_DIR='$libraries/qemu' exec '$sysroot/lib64/ld-linux-x86-64.so.2' \\" \
        "    --library-path '$libraries' '$sysroot/usr/bin/qemu-system-x86_64' \\" \
        "    -L '$sysroot/usr/share/qemu' -L '$sysroot/usr/share/seabios' \\" \
        "    -L '$sysroot/usr/lib/ipxe/qemu' \"\$@\"" >"$cache/qemu-system-x86_64"
    chmod +x "$cache/qemu-system-x86_64"
}

# Whether CACHE has a system for this checkout; only looks.
system_is_ready() {
    has_packages && [[ -d $sysroot$top && -x $cache/qemu-system-x86_64 ]] &&
        cmp -s "$top/pyproject.toml" "$sysroot/opt/arcsup/.pyproject.toml"
}

# virtme-ng looks for a foreign root's modules in it.
put_modules_in_place() {
    local version
    version=$(<"$cache/version")
    cmp -s "$cache/current" "$sysroot/lib/modules/$version/key" && return
    rm -rf "${sysroot:?}/usr/lib/modules"
    mkdir -p "$sysroot/usr/lib/modules"
    cp -r "$(<"$cache/current")/lib/modules/$version" "$sysroot/usr/lib/modules/"
    cp "$cache/current" "$sysroot/usr/lib/modules/$version/key"
}

need_suite() {
    if ((EUID)); then
        local sudo
        if system_is_ready && [[ $(<"$cache/current") == "$(find_kernel_root)" ]]; then
            return
        fi
        local again=(--prepare --suite "$suite")
        [[ -n $iommufd ]] || again+=(--no-iommufd)
        need_root_for tests/lab/run "${again[@]}"
        flock --unlock 9
        "${sudo[@]}" env ARCSUP_CACHE="$(dirname "$(dirname "$cache")")" "$lab/run" \
            "${again[@]}"
        return
    fi
    if ! system_is_ready; then
        [[ -e $sysroot/.complete ]] || make_system
        has_packages || add_packages
        make_qemu_wrapper
        install_python_packages
        cp "$top/pyproject.toml" "$sysroot/opt/arcsup/.pyproject.toml"
        # Where the guest, which cannot write to its root, finds the checkout.
        mkdir -p "$sysroot$top"
    fi
    need_kernel
    put_modules_in_place
}
