#!/usr/bin/env bash
# Makes a fresh Debian or Ubuntu machine able to build Quorate, and nothing more.
#
# 1. Looks for a Rust toolchain, a C++ compiler and libclang. What is missing and comes from apt is installed
#    where that is allowed (root, or sudo without a password); otherwise the exact command is printed and we stop.
# 2. Builds RocksDB's C++ once per machine and version into the cache. Every profile, clone and CI run links
#    that one archive: without this each of them would compile the same 340 files again.
# 3. Writes .cargo/config.toml (not committed), so that plain `cargo` finds the archive as `make` does.
#
# Safe to repeat: with everything in place it takes a fraction of a second.
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${QUORATE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/quorate}"
say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

need_rust() {
  command -v cargo >/dev/null 2>&1 && return
  die "no Rust toolchain found. Install one with rustup (see the Rust project's install page), then run make again."
}

# The library itself, and the compiler's own headers: without those it cannot read a C header.
has_libclang() {
  [ -n "${LIBCLANG_PATH:-}" ] && return 0
  compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null || return 1
  compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || compgen -G '/usr/lib/*/libclang-[0-9]*.so*' >/dev/null
}

missing_packages() {
  command -v clang++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || echo clang
  command -v cc >/dev/null 2>&1 || echo gcc libc6-dev
  has_libclang || echo libclang-dev
}

install_packages() {
  local packages
  packages=$(missing_packages | tr '\n' ' ')
  [ -n "${packages// /}" ] || return 0
  local apt="apt-get"
  if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2>/dev/null; then apt="sudo -n apt-get"; else apt=""; fi
  fi
  if [ -z "$apt" ] || ! command -v apt-get >/dev/null 2>&1; then
    die "missing: $packages. Run this, then make again:
    sudo apt-get update && sudo apt-get install -y $packages"
  fi
  say "installing $packages"
  # shellcheck disable=SC2086  # word splitting is meant: a list of packages, a command with its arguments
  $apt update -qq && DEBIAN_FRONTEND=noninteractive $apt install -y -qq $packages >/dev/null
}

# The version that the workspace is locked to is the version that is built.
locked_version() {
  awk -v name="\"$1\"" '$1=="name" && $3==name { getline; gsub(/"/, "", $3); print $3; exit }' Cargo.lock
}

build_rocksdb() {
  local sys lib
  sys=$(locked_version librocksdb-sys)
  [ -n "$sys" ] || die "Cargo.lock names no librocksdb-sys"
  lib="$cache/rocksdb/$sys-lz4-$(uname -m)"
  rocksdb_lib="$lib"
  [ -f "$lib/librocksdb.a" ] && return 0

  say "building RocksDB $sys once for this machine: 10 to 15 minutes on two cores"
  local work="$cache/rocksdb/build-$sys"
  mkdir -p "$work/src" "$lib"
  cat >"$work/Cargo.toml" <<TOML
[package]
name = "rocksdb-archive"
version = "0.0.0"
edition = "2021"
[dependencies]
librocksdb-sys = { version = "=$sys", default-features = false, features = ["lz4", "bindgen-runtime"] }
[profile.release]
opt-level = 2
[workspace]
TOML
  : >"$work/src/lib.rs"
  # clang compiles this code about a quarter faster than g++. SSE4.2 gives hardware checksums.
  local flags=""
  [ "$(uname -m)" = x86_64 ] && flags="-C target-cpu=x86-64-v2"
  if command -v clang++ >/dev/null 2>&1; then export CC=clang CXX=clang++; fi
  (
    unset ROCKSDB_LIB_DIR ROCKSDB_STATIC CARGO_BUILD_TARGET_DIR
    cd "$work"
    CARGO_TARGET_DIR="$work/target" RUSTFLAGS="$flags" cargo build --release --quiet
  ) &
  local pid=$! start=$SECONDS done_files
  while kill -0 "$pid" 2>/dev/null; do
    sleep 5 & wait $! || true
    # find fails when a folder goes while it looks: that must not end the build.
    done_files=$({ find "$work/target" -path '*librocksdb-sys*' -name '*.o' 2>/dev/null || true; } | wc -l)
    [ $(((SECONDS - start) % 30)) -ge 5 ] || say "RocksDB: $done_files of about 345 files, $((SECONDS - start)) s"
  done
  wait "$pid" || die "RocksDB did not build; the compiler's message is above"
  local archive
  archive=$(find "$work/target/release/build" -name librocksdb.a | head -n 1)
  [ -n "$archive" ] || die "RocksDB built, but librocksdb.a is nowhere to be found"
  cp "$archive" "$lib/librocksdb.a.part" && mv "$lib/librocksdb.a.part" "$lib/librocksdb.a"
  rm -rf "$work"
  say "RocksDB built in $((SECONDS - start)) s"
}

write_cargo_config() {
  local wanted
  wanted=$(printf '# Written by deploy/setup.sh; not committed.\n[env]\nROCKSDB_LIB_DIR = "%s"\nROCKSDB_STATIC = "1"\n' "$rocksdb_lib")
  mkdir -p .cargo
  [ -f .cargo/config.toml ] && [ "$(cat .cargo/config.toml)" = "$wanted" ] || printf '%s\n' "$wanted" >.cargo/config.toml
}

need_rust
install_packages
build_rocksdb
write_cargo_config
