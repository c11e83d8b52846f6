#!/usr/bin/env bash
# The function for arm64, the template's default, from `sam build` on x86_64; and target/arm64/bootstrap, which runs it there, for tests/e2e.
#
#     sudo bash tests/arm64/build.sh && python3 tests/e2e/run.py --binary target/arm64/bootstrap && python3 tests/e2e/killed.py --binary target/arm64/bootstrap
#
# From a fresh clone on Debian 12 with Rust and Python 3.11, as root; it installs the rest. Where rustup cannot add Rust's target for arm64, compiler and
# target are Debian's: packages of a newer suite in a folder of their own, where the compiler is started by its own loader, on its own C library. So the
# machine's own packages stay as they are, and there are no mounts to take away if this fails; the next run deletes that folder first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=.ci/common
. .ci/common

TARGET=aarch64-unknown-linux-gnu
FOLDER=$CARGO_TARGET_DIR/arm64
# Where Debian has a Rust that is new enough, and what that is built on.
BASE=trixie
SUITE=$BASE-backports
# The C library of Lambda's runtime provided.al2023: <https://docs.aws.amazon.com/linux/al2023/ug/core-glibc.html>.
LAMBDA_GLIBC=2.34
# The oldest Graviton that Lambda has, and what cargo-lambda compiles for.
PROCESSOR=neoverse-n1

fail() { # reason
  echo "arm64: $1" >&2
  exit 1
}

main() {
  [ "$(id -u)" = 0 ] || fail 'this installs packages, and so needs root'
  [ "$(dpkg --print-architecture)" = amd64 ] || fail 'this is for x86_64; on arm64 sam build needs no help'
  command -v cargo >/dev/null || fail 'there is no cargo in the PATH'
  mkdir -p "$FOLDER"
  install_emulator
  install_sam
  has_target "${RUSTC:-rustc}" || unpack_compiler
  check_compiler
  build
  check_binary
  write_bootstrap
}

# Without what they recommend: that would register the emulator for every program of the machine.
install_emulator() {
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user libc6-arm64-cross binutils gcc libc6-dev python3-venv >/dev/null
}

install_sam() {
  python3 -m venv .venv/tools
  .venv/tools/bin/pip install --quiet -r .ci/requirements.txt
}

has_target() { # compiler
  compgen -G "$("$1" --print sysroot)/lib/rustlib/$TARGET/lib/libstd-*.rlib" >/dev/null
}

# Leaves RUSTC.
unpack_compiler() {
  local apt=$FOLDER/apt root=$FOLDER/debian version package
  rm -rf "$apt" "$root"
  mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$root"
  configure_apt "$apt"
  export APT_CONFIG=$apt/apt.conf
  apt-get update -qq
  version=$(apt-cache policy rustc | sed -n 's/^ *Candidate: //p')
  # Its libraries with all that they need; of rustc, which would want a gcc too, and of the target, nothing but themselves. A library for another version than the
  # compiler's cannot be read, so a suite in which arm64 lags behind ends this here.
  apt-get install -y -qq --download-only "libstd-rust-dev=$version"
  (cd "$apt/cache/archives" && apt-get download -qq "rustc=$version" "libstd-rust-dev:arm64=$version")
  unset APT_CONFIG
  for package in "$apt"/cache/archives/*.deb; do
    dpkg-deb --extract "$package" "$root"
  done
  rm -rf "$apt"

  # Not by LD_LIBRARY_PATH: the machine's own linker, which the compiler starts, would inherit it.
  RUSTC=$FOLDER/rustc
  cat >"$RUSTC" <<END
#!/bin/sh
libraries='$root/usr/lib/x86_64-linux-gnu'
exec "\$libraries/ld-linux-x86-64.so.2" --library-path "\$libraries" --argv0 rustc '$root/usr/bin/rustc' --sysroot '$root/usr' "\$@"
END
  chmod +x "$RUSTC"
  has_target "$RUSTC" || fail "Debian's rustc $version does not find its library for $TARGET"
}

# An apt beside the machine's, with no package installed. The mirror is that of the machine's own sources.
configure_apt() { # folder
  local mirror keys=/usr/share/keyrings/debian-archive-keyring.gpg
  # shellcheck disable=SC2016 # apt's own variable
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' "Codename: $(. /etc/os-release && echo "$VERSION_CODENAME")" | sed -n 1p)
  [ -n "$mirror" ] || fail "apt's sources name no mirror of Debian. With rustup: rustup target add $TARGET"
  [ -r "$keys" ] || fail "there is no $keys (package debian-archive-keyring)"
  : >"$1/status"
  printf "deb [signed-by=$keys target=Packages] $mirror %s main\n" "$BASE" "$SUITE" >"$1/sources.list"
  cat >"$1/apt.conf" <<END
Dir::Etc::SourceList "$1/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$1/state";
Dir::State::Status "$1/status";
Dir::Cache "$1/cache";
APT::Architectures { "amd64"; "arm64"; };
APT::Default-Release "$SUITE";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
# Its own user may not be let into this folder. What is downloaded is checked by signature and hash all the same.
APT::Sandbox::User "root";
END
}

check_compiler() {
  local least found
  least=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
  found=$("${RUSTC:-rustc}" -vV | sed -n 's/^release: //p')
  dpkg --compare-versions "$found" ge "$least" || fail "the compiler is Rust $found; Cargo.toml wants $least or newer"
  echo "Rust $found, for $TARGET"
}

# As docs/deploy.md has it, but with a folder of its own: .aws-sam/build may hold the x86_64 build. Told of no rustup, cargo-lambda does not ask it for the target.
build() {
  export RUSTC=${RUSTC:-rustc}
  RUSTUP=no-rustup sam build --build-dir "$FOLDER/sam"
  FUNCTION=$FOLDER/sam/RestartFunction/bootstrap
}

check_binary() {
  local needed
  readelf --file-header "$FUNCTION" | grep 'Machine: *AArch64' >/dev/null || fail "$FUNCTION is not for arm64"
  needed=$(readelf --version-info "$FUNCTION" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -V | tail -n 1)
  [ -n "$needed" ] || fail "$FUNCTION names no version of the C library"
  dpkg --compare-versions "$needed" le "$LAMBDA_GLIBC" || fail "$FUNCTION needs glibc $needed; Lambda has $LAMBDA_GLIBC"
  echo "$(stat --format %s "$FUNCTION") bytes, for arm64, glibc $needed or newer, SHA-256 $(sha256sum <"$FUNCTION" | cut -d ' ' -f 1)"
}

write_bootstrap() {
  cat >"$FOLDER/bootstrap" <<END
#!/bin/sh
exec /usr/bin/qemu-aarch64 -cpu $PROCESSOR -L /usr/aarch64-linux-gnu '$FUNCTION' "\$@"
END
  chmod +x "$FOLDER/bootstrap"
}

main
