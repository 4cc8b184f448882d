# shellcheck shell=bash
# What the lab stands on: host packages, the project's own environment, and a kernel root in the
# cache: CACHE/KEY/{boot/vmlinux-VERSION,lib/modules/VERSION}, where VERSION is Debian's kernel and
# the modules are those of wanted-modules, the kernel's own vfio-mdev samples and tests/lab/modules.
# A suite other than the host's own is a Debian of its own in CACHE/root (suite.sh), and its VFIO is
# built anew, with iommufd.
# Sourced by run, which sets: lab (this folder), top (the checkout), cache, suite, iommufd.

say() { printf 'lab: %s\n' "$*" >&2; }
die() { say "$*" && exit 1; }

# program in PATH : Debian package that brings it
readonly host_needs='
qemu-system-x86_64:qemu-system-x86 busybox:busybox-static depmod:kmod udevadm:udev
make:make gcc:gcc xz:xz-utils zstd:zstd strings:binutils file:file'

find_missing_packages() {
    local need
    for need in $host_needs "$@"; do
        command -v "${need%%:*}" >/dev/null || echo "${need##*:}"
    done
}

# Finds how to be root: fills the array sudo, or ends with what a person has to do.
need_root_for() {
    sudo=()
    ((EUID)) || return 0
    sudo=(sudo)
    [[ -t 0 ]] || sudo+=(--non-interactive)
    "${sudo[@]}" true 2>/dev/null || die "as root, run: $*"
}

need_packages() {
    local missing sudo
    mapfile -t missing < <(find_missing_packages "$@")
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null ||
        die "this is no Debian; install by hand what these packages hold: ${missing[*]}"
    need_root_for apt-get install "${missing[@]}"
    say "installing ${missing[*]}"
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq \
        --no-install-recommends "${missing[@]}" >/dev/null
}

# Runs a command on the suite's own system. Paths below $sysroot are then without it.
in_sysroot() {
    if [[ -n $sysroot ]]; then
        chroot "$sysroot" "$@"
    else
        "$@"
    fi
}

# The newest kernel whose image and headers are installed, else the one that Debian offers now.
choose_kernel() {
    local modules version
    for modules in "$sysroot"/lib/modules/*-amd64; do
        version=${modules##*/}
        if [[ -r $sysroot/boot/vmlinuz-$version && -e $modules/build/Makefile ]]; then
            echo "$version"
        fi
    done | sort -rV | grep -m 1 . && return
    in_sysroot apt-cache depends linux-image-amd64 2>/dev/null |
        sed -n 's/^ *Depends: linux-image-\([0-9].*-amd64\)$/\1/p' | head -n 1
}

# Unpacks Debian packages into a folder, beside the system's own.
unpack_packages() {
    local into=$1 debs
    shift
    debs=$(mktemp -d "$work/debs.XXXXXX")
    say "downloading $*"
    in_sysroot sh -ec 'cd "$1" && shift && apt-get download -qq -o APT::Sandbox::User=root "$@"' - "${debs#"$sysroot"}" "$@" ||
        die "apt-get download failed; try: apt-get update"
    mkdir -p "$into"
    find "$debs" -name '*.deb' -exec dpkg-deb -x {} "$into" \;
    rm -r "$debs"
}

# Prints the folder below which boot/, lib/modules/ and usr/src/ of this kernel are.
find_kernel_files() {
    local version=$1 root=$store/kernel-$1 needs
    if [[ -z $sysroot && -r /boot/vmlinuz-$version && -e /lib/modules/$version/build/Makefile ]]; then
        return
    fi
    if [[ ! -e $root/.complete ]]; then
        # The common headers and the build tools, whose names differ from suite to suite.
        mapfile -t needs < <(in_sysroot apt-cache depends "linux-headers-$version" |
            sed -n 's/^ *Depends: \(linux-\(headers\|kbuild\)-.*\)$/\1/p')
        unpack_packages "$root" "linux-image-$version" "linux-headers-$version" "${needs[@]}"
        # Debian's headers name each other by absolute path.
        sed -i "s:/usr/src/:${root#"$sysroot"}/usr/src/:" "$root/usr/src/linux-headers-$version/Makefile"
        # Debian's newer kernels are in usr/lib.
        [[ -e $root/lib ]] || ln -s usr/lib "$root/lib"
        touch "$root/.complete"
    fi
    echo "$root"
}

# Prints the folder with the parts of Debian's kernel source that the lab builds: the
# mediated-device samples (mtty, mdpy, mbochs), and with iommufd VFIO and what iommufd needs.
find_kernel_sources() {
    local version=$1 series parts sources unpacked=$work/source tarball
    series=$(cut -d. -f1,2 <<<"$version")
    parts=(samples/vfio-mdev)
    [[ -z $iommufd ]] ||
        parts+=(drivers/vfio drivers/iommu/iommufd drivers/iommu/iommu-priv.h lib/interval_tree.c)
    sources=$store/source-$series${iommufd:+-iommufd}
    if [[ ! -d $sources ]]; then
        tarball=$sysroot/usr/src/linux-source-$series.tar.xz
        if [[ ! -r $tarball ]]; then
            unpack_packages "$unpacked" "linux-source-$series"
            tarball=$unpacked/usr/src/linux-source-$series.tar.xz
        fi
        mkdir -p "$sources.new"
        tar -C "$sources.new" --strip-components=1 -xJf "$tarball" \
            "${parts[@]/#/linux-source-$series/}"
        mv -T "$sources.new" "$sources"
        rm -rf "$unpacked"
    fi
    echo "$sources"
}

# VFIO and iommufd as Debian's kernel would have them, were its CONFIG_IOMMUFD not off: unpatched,
# only the option differs. What they need of the kernel itself it exports whether it is on or off,
# and no structure of its own changes with it.
copy_iommufd_sources() {
    local sources=$1 into=$2
    cp -r "$sources/drivers/vfio" "$sources/drivers/iommu" "$into"
    # CONFIG_INTERVAL_TREE_SPAN_ITER is off as well, and nothing of the kernel has what it switches on.
    cp "$sources/lib/interval_tree.c" "$into/iommu/iommufd"
    printf '%s\n' 'iommufd-y += interval_tree.o' 'CFLAGS_interval_tree.o := -D__DISABLE_EXPORTS' \
        >>"$into/iommu/iommufd/Makefile"
}

build_modules() {
    local version=$1 headers=$2 into=$3 sources options=()
    sources=$(find_kernel_sources "$version")
    cp "$sources"/samples/vfio-mdev/*.[ch] "$lab"/modules/* "$into"
    if [[ -n $iommufd ]]; then
        copy_iommufd_sources "$sources" "$into"
        options=(CONFIG_IOMMUFD=m CONFIG_VFIO_DEVICE_CDEV=y)
    fi
    # Type information for BPF would need pahole and the whole kernel.
    in_sysroot make -s -j"$(nproc)" -C "${headers#"$sysroot"}" M="${into#"$sysroot"}" CC=gcc \
        CONFIG_DEBUG_INFO_BTF_MODULES= "${options[@]}" modules
}

# Copies a module into a folder, unpacked: the initramfs's insmod takes no packed ones.
install_module() {
    local file=$1 into=$2
    mkdir -p "$into"
    case $file in
        *.xz) xz -dc "$file" >"$into/$(basename "$file" .xz)" ;;
        *.zst) zstd -dcq "$file" >"$into/$(basename "$file" .zst)" ;;
        *) cp "$file" "$into" ;;
    esac
}

# A tree with the wanted modules only: what udev's coldplug can load is what boot time is spent on.
install_modules() {
    local version=$1 from=$2 tree=$3 wanted module file
    mkdir -p "$tree"
    cp "$from/lib/modules/$version"/modules.{order,builtin,builtin.modinfo} "$tree"
    [[ -e $from/lib/modules/$version/modules.dep ]] || depmod -b "$from/" "$version"
    wanted=$(sed 's/#.*//' "$lab/wanted-modules")
    for module in $wanted; do
        modprobe -d "$from/" -S "$version" --show-depends "$module" 2>/dev/null || true
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | while read -r file; do
        install_module "$file" "$tree/kernel"
    done
}

make_kernel_root() {
    local version=$1 root=$2 from work tree module
    work=$(mktemp -d "$store/work.XXXXXX")
    tree=$work/root/lib/modules/$version
    from=$(find_kernel_files "$version")
    say "building the modules for $version"
    mkdir "$work/modules"
    build_modules "$version" "$from/usr/src/linux-headers-$version" "$work/modules"
    install_modules "$version" "$from" "$tree"
    find "$work/modules" -name '*.ko' -exec install -D -m 644 -t "$tree/extra" {} +
    # What was built here is there once, and not Debian's too.
    for module in "$tree"/extra/*.ko; do
        rm -f "$tree/kernel/${module##*/}"
    done
    depmod -b "$work/root" "$version"
    # Debian packs the kernel with xz, which takes seconds to unpack under TCG; QEMU boots the plain
    # image by its PVH entry.
    mkdir "$work/root/boot"
    "$top/.venv/bin/python" "$lab/unpack_image.py" \
        "$from/boot/vmlinuz-$version" "$work/root/boot/vmlinux-$version"
    touch "$work/root/.complete"
    mv -T "$work/root" "$root"
    rm -r "$work"
}

# The kernel root of this checkout's sources.
find_kernel_root() {
    cat "$lab"/modules/* "$lab/wanted-modules" "$lab/prepare.sh" | sha256sum |
        sed "s:^\(.\{12\}\).*:$cache/$(<"$cache/version")-\1${iommufd:+-iommufd}:"
}

need_kernel() {
    local root
    mkdir -p "$store"
    # Chosen once and kept, so that a warm start asks neither apt nor the network.
    [[ -s $cache/version ]] || choose_kernel >"$cache/version" || true
    [[ -s $cache/version ]] || die "no Debian kernel here or in apt's lists; try: apt-get update"
    root=$(find_kernel_root)
    if [[ ! -e $root/.complete ]]; then
        find "$cache" -maxdepth 1 -name '*-amd64-*' -mtime +7 -exec rm -r {} +
        make_kernel_root "$(<"$cache/version")" "$root"
    fi
    echo "$root" >"$cache/current"
}

prepare() {
    [[ $(uname -m) == x86_64 ]] || die "the lab's machine is x86_64 only"
    # The project's own set-up brings QEMU, kmod, udev and .venv.
    "$top/contrib/dev/setup"
    need_packages
    mkdir -p "$cache"
    # Two at once would build in each other's way.
    exec 9>>"$cache/lock"
    flock 9
    if [[ -z $sysroot ]]; then
        need_kernel
    else
        need_suite
    fi
    # The guest would inherit the lock, and keep every other run waiting.
    exec 9>&-
}
