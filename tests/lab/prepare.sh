# shellcheck shell=bash
# What the lab stands on: host packages, the project's own environment, and a kernel root in the
# cache: CACHE/KEY/{boot/vmlinux-VERSION,lib/modules/VERSION}, where VERSION is Debian's kernel and
# the modules are those of wanted-modules, the kernel's own vfio-mdev samples and tests/lab/modules.
# Sourced by run, which sets: lab (this folder), top (the checkout), cache, suite.

say() { printf 'lab: %s\n' "$*" >&2; }
die() { say "$*" && exit 1; }

# program in PATH : Debian package that brings it
readonly host_needs='
qemu-system-x86_64:qemu-system-x86 busybox:busybox-static depmod:kmod udevadm:udev
make:make gcc:gcc xz:xz-utils strings:binutils'

find_missing_packages() {
    local need
    for need in $host_needs; do
        command -v "${need%%:*}" >/dev/null || echo "${need##*:}"
    done
}

need_packages() {
    local missing sudo=()
    mapfile -t missing < <(find_missing_packages)
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null ||
        die "this is no Debian; install by hand what these packages hold: ${missing[*]}"
    if ((EUID)); then
        sudo=(sudo)
        [[ -t 0 ]] || sudo+=(--non-interactive)
        "${sudo[@]}" true 2>/dev/null || die "as root, run: apt-get install ${missing[*]}"
    fi
    say "installing ${missing[*]}"
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq \
        --no-install-recommends "${missing[@]}" >/dev/null
}

# The project's own set-up brings QEMU, kmod, udev and .venv.
need_environment() {
    "$top/contrib/dev/setup"
}

# The newest kernel whose image and headers are installed, else the one that Debian offers now.
choose_kernel() {
    local modules version
    while read -r modules; do
        version=${modules##*/}
        if [[ -r /boot/vmlinuz-$version && -e $modules/build/Makefile ]]; then
            echo "$version"
            return
        fi
    done < <(printf '%s\n' /lib/modules/*-amd64 | sort -rV)
    apt-cache depends linux-image-amd64 2>/dev/null |
        sed -n 's/^ *Depends: linux-image-\([0-9].*-amd64\)$/\1/p' | head -n 1
}

# Unpacks Debian packages into a folder, beside the host's own.
unpack_packages() {
    local into=$1 debs
    shift
    debs=$(mktemp -d "$cache/debs.XXXXXX")
    say "downloading $*"
    (cd "$debs" && apt-get download -qq "$@") || die "apt-get download failed; try apt-get update"
    mkdir -p "$into"
    find "$debs" -name '*.deb' -exec dpkg-deb -x {} "$into" \;
    rm -r "$debs"
}

# Prints the folder below which boot/, lib/modules/ and usr/src/ of this kernel are.
find_kernel_files() {
    local version=$1 root=$cache/unpacked-$1 series
    if [[ -r /boot/vmlinuz-$version && -e /lib/modules/$version/build/Makefile ]]; then
        return
    fi
    if [[ ! -e $root/.complete ]]; then
        series=$(cut -d. -f1,2 <<<"$version")
        unpack_packages "$root" "linux-image-$version" "linux-headers-$version" \
            "linux-headers-${version%-amd64}-common" "linux-kbuild-$series"
        # Debian's headers name each other by absolute path.
        sed -i "s:/usr/src/:$root/usr/src/:" "$root/usr/src/linux-headers-$version/Makefile"
        touch "$root/.complete"
    fi
    echo "$root"
}

# The kernel's mediated-device samples (mtty, mdpy, mbochs) from Debian's source package.
copy_sample_sources() {
    local version=$1 into=$2 series samples unpacked tarball
    series=$(cut -d. -f1,2 <<<"$version")
    samples=$cache/samples-$series
    if [[ ! -d $samples ]]; then
        tarball=/usr/src/linux-source-$series.tar.xz
        if [[ ! -r $tarball ]]; then
            unpacked=$(mktemp -d "$cache/source.XXXXXX")
            unpack_packages "$unpacked" "linux-source-$series"
            tarball=$unpacked$tarball
        fi
        mkdir -p "$samples.new"
        tar -C "$samples.new" --strip-components=3 -xJf "$tarball" \
            "linux-source-$series/samples/vfio-mdev"
        mv -T "$samples.new" "$samples"
        rm -rf "${unpacked:-}"
    fi
    cp "$samples"/*.[ch] "$into"
}

build_modules() {
    local version=$1 headers=$2 into=$3
    copy_sample_sources "$version" "$into"
    cp "$lab"/modules/* "$into"
    make -s -C "$headers" M="$into" CC=gcc modules 2> >(grep -v 'Skipping BTF' >&2)
}

# A tree with the wanted modules only: what udev's coldplug can load is what boot time is spent on.
install_modules() {
    local version=$1 from=$2 into=$3 wanted module file
    mkdir -p "$into/lib/modules/$version"
    cp "$from/lib/modules/$version"/modules.{order,builtin,builtin.modinfo} "$into/lib/modules/$version"
    wanted=$(sed 's/#.*//' "$lab/wanted-modules")
    for module in $wanted; do
        modprobe -d "$from/" -S "$version" --show-depends "$module" 2>/dev/null || true
    done | sed -n 's/^insmod //p' | sort -u | while read -r file; do
        file=${file%% *}
        install -D -m 644 "$file" "$into/lib/modules/$version/${file#*/lib/modules/"$version"/}"
    done
}

# Debian packs the kernel with xz, which takes seconds to unpack under TCG; QEMU boots the plain
# image by its PVH entry (docs/specs/pvh.rst is followed by -kernel of an ELF file).
unpack_image() {
    "$top/.venv/bin/python" "$lab/unpack_image.py" "$1" "$2"
}

make_kernel_root() {
    local version=$1 key=$2 from work root=$cache/$2
    from=$(find_kernel_files "$version")
    say "building the modules for $version"
    work=$(mktemp -d "$cache/build.XXXXXX")
    mkdir "$work/modules" "$work/root" "$work/root/boot"
    build_modules "$version" "$from/usr/src/linux-headers-$version" "$work/modules"
    install_modules "$version" "$from" "$work/root"
    install -D -m 644 -t "$work/root/lib/modules/$version/extra" "$work"/modules/*.ko
    depmod -b "$work/root" "$version"
    unpack_image "$from/boot/vmlinuz-$version" "$work/root/boot/vmlinux-$version"
    touch "$work/root/.complete"
    mv -T "$work/root" "$root"
    rm -r "$work"
}

need_kernel() {
    local version key
    mkdir -p "$cache"
    # Chosen once and kept, so that a warm start asks neither apt nor the network.
    [[ -s $cache/version ]] || choose_kernel >"$cache/version"
    version=$(<"$cache/version")
    [[ -n $version ]] || die "no Debian kernel here or in apt's lists; try: apt-get update"
    key=$version-$(cat "$lab"/modules/* "$lab/wanted-modules" "$lab/prepare.sh" | sha256sum | cut -c1-12)
    [[ -e $cache/$key/.complete ]] || make_kernel_root "$version" "$key"
    echo "$cache/$key" >"$cache/current"
}

prepare() {
    [[ $(uname -m) == x86_64 ]] || die "the lab's machine is x86_64 only"
    need_environment
    need_packages
    need_kernel
}
