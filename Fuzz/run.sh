#!/bin/sh
# Fuzz/run.sh TARGET SECONDS [libFuzzer option...]    e.g. Fuzz/run.sh StreamReader 60 -seed=1
#
# Builds Fuzz/TARGET with libFuzzer into .build/fuzz and runs it. The corpus grows in .build/fuzz/TARGET-corpus; inputs that
# crash are left in .build/fuzz as crash-*; run one again with: .build/fuzz/TARGET crash-...
set -eu
cd "$(dirname "$0")/.."
target=$1 seconds=$2
shift 2
out=.build/fuzz
corpus=$out/$target-corpus
mkdir -p "$corpus"

# -enable-testing lets the target use the feeder of the tests; optimised, but with all checks.
flags="-O -enable-testing -sanitize=fuzzer -parse-as-library -package-name apus -swift-version 6 -enable-experimental-feature Lifetimes
    -enable-upcoming-feature InternalImportsByDefault -enable-upcoming-feature MemberImportVisibility -I $out"
module() {
    name=$1
    shift
    # shellcheck disable=SC2086
    swiftc $flags -wmo -module-name "$name" -emit-module -emit-module-path "$out/$name.swiftmodule" -c "$@" -o "$out/$name.o"
}
case $target in
StreamReader)
    module ApusSystem Sources/ApusSystem/Spans.swift
    module ApusWire Sources/ApusWire/Qemu/*.swift
    # shellcheck disable=SC2086
    swiftc $flags -module-name Fuzz Fuzz/StreamReader/*.swift Tests/ApusWireTests/Qemu/StreamFeeder.swift \
        "$out/ApusSystem.o" "$out/ApusWire.o" -o "$out/$target"
    ;;
Updates)
    # The fence as a whole: its C, and the maps of the libraries' headers.
    mkdir -p "$out/CApus"
    printf 'module CApus { umbrella "%s" export * }\n' "$PWD/Sources/CApus/include" >"$out/CApus/module.modulemap"
    flags="$flags -I $out/CApus -I Sources/CZstd -I Sources/CLZ4 -I Sources/CXXHash"
    for source in Sources/CApus/*.c; do
        clang -O2 -I Sources/CApus/include -c "$source" -o "$out/$(basename "$source" .c).o"
    done
    module ApusSystem Sources/ApusSystem/*.swift
    module ApusMemory Sources/ApusMemory/*.swift
    module ApusCodec Sources/ApusCodec/*.swift
    # shellcheck disable=SC2086
    swiftc $flags -module-name Fuzz Fuzz/Updates/*.swift "$out/ApusSystem.o" "$out/ApusMemory.o" "$out/ApusCodec.o" \
        "$out"/capus*.o \
        -lzstd -llz4 -lxxhash -o "$out/$target"
    ;;
*)
    echo "No fuzz target $target" >&2
    exit 2
    ;;
esac

# Swift's backtracer hangs in a crash under libFuzzer.
export SWIFT_BACKTRACE=enable=no
exec "$out/$target" -max_total_time="$seconds" -artifact_prefix="$out/" -dict="Fuzz/$target/dictionary" -max_len=16384 \
    -timeout=10 -rss_limit_mb=2048 "$@" "$corpus" "Fuzz/$target/seeds"
