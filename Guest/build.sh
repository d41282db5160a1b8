#!/usr/bin/env bash
# Builds the guest: Guest/build.sh OUT KERNEL_ROOT
#
# KERNEL_ROOT is an unpacked Debian linux-image package (boot/vmlinuz-*, lib/modules/*). Writes OUT/vmlinuz and
# OUT/initrd, both by renaming, so that a running user never sees half a file.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?where to put vmlinuz and initrd}
kernel=${2:?an unpacked linux-image package}

# In the order they must be loaded: what a module needs comes before it. Block and network drivers are there for
# guests that are given a disk or a card; without the device they only register.
modules=(
    virtio/virtio_ring virtio/virtio virtio/virtio_pci_legacy_dev virtio/virtio_pci_modern_dev virtio/virtio_pci
    block/virtio_blk net/core/failover net/net_failover net/virtio_net
)

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$stage"/{bin,dev,proc,sys,modules} "$out"
gcc -std=gnu11 -static -O2 -Wall -Wextra -Werror -o "$stage/prover" "$here/prover.c" -lpthread
cp /bin/busybox "$stage/bin/busybox"
install -m 755 "$here/init" "$stage/init"
for module in "${modules[@]}"; do
    found=$(find "$kernel"/lib/modules/*/kernel -path "*/$module.ko" -print -quit)
    [ -n "$found" ] || { echo "Guest/build.sh: $module.ko is not in $kernel" >&2; exit 1; }
    cp "$found" "$stage/modules/"
    echo "${module##*/}.ko" >>"$stage/modules/order"
done
find "$stage" -exec touch -hd @0 {} +
(cd "$stage" && find . | LC_ALL=C sort | cpio --quiet --reproducible -R 0:0 -o -H newc) >"$out/initrd.new"
cp "$kernel"/boot/vmlinuz-* "$out/vmlinuz.new"
mv "$out/vmlinuz.new" "$out/vmlinuz"
mv "$out/initrd.new" "$out/initrd"
