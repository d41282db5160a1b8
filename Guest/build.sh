#!/usr/bin/env bash
# Builds the guest: Guest/build.sh OUT KERNEL_ROOT
#
# KERNEL_ROOT is an unpacked Debian linux-image package (boot/vmlinuz-*, lib/modules/*). Writes OUT/vmlinuz, OUT/initrd
# and OUT/initrd-redis, each by renaming, so that a running user never sees half a file. initrd-redis is initrd with
# Debian's redis-server and its libraries behind it: the kernel unpacks one archive after the other.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?where to put vmlinuz, initrd and initrd-redis}
kernel=${2:?an unpacked linux-image package}

# In the order they must be loaded: what a module needs comes before it. Block and network drivers are there for
# guests that are given a disk or a card; without the device they only register.
modules=(
    virtio/virtio_ring virtio/virtio virtio/virtio_pci_legacy_dev virtio/virtio_pci_modern_dev virtio/virtio_pci
    block/virtio_blk net/core/failover net/net_failover net/virtio_net
)

archive() {
    find "$1" -exec touch -hd @0 {} +
    (cd "$1" && find . | LC_ALL=C sort | cpio --quiet --reproducible -R 0:0 -o -H newc)
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stage=$work/guest
mkdir -p "$stage"/{bin,dev,proc,sys,modules} "$out"
gcc -std=gnu11 -static -O2 -Wall -Wextra -Werror -o "$stage/prover" "$here"/{prover,direct,redis}.c -lpthread
cp /bin/busybox "$stage/bin/busybox"
install -m 755 "$here/init" "$stage/init"
for module in "${modules[@]}"; do
    found=$(find "$kernel"/lib/modules/*/kernel -path "*/$module.ko" -print -quit)
    [ -n "$found" ] || { echo "Guest/build.sh: $module.ko is not in $kernel" >&2; exit 1; }
    cp "$found" "$stage/modules/"
    echo "${module##*/}.ko" >>"$stage/modules/order"
done
archive "$stage" >"$out/initrd.new"

# The package redis-tools has the server too, under the name of one of its other uses, and starts nothing when installed.
server=$work/redis/bin/redis-server
mkdir -p "${server%/*}"
cp /usr/bin/redis-check-rdb "$server"
ldd "$server" | grep -o '/[^ ]*' | while read -r library; do
    install -D "$library" "$work/redis$library"
done
{ cat "$out/initrd.new"; archive "$work/redis"; } >"$out/initrd-redis.new"

cp "$kernel"/boot/vmlinuz-* "$out/vmlinuz.new"
for file in vmlinuz initrd-redis initrd; do mv "$out/$file.new" "$out/$file"; done
