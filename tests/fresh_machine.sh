#!/bin/sh
# The README's two commands on a bare Debian 12 as a new user has it: none of the packages, no ../shared.
# Both orders, each command twice: nothing fails, and the second time nothing is built.
#   tests/fresh_machine.sh [FOLDER]    default: build-fresh/ of the checkout; about 400 MB, kept for the next run
# Takes the last commit, and the package source that this machine itself uses. Needs root, debootstrap and
# leave to mount; where one of them is missing it says "skipped: ..." and succeeds. About 5 minutes on two
# cores: a compiler cache (the one package that a user has not) keeps the second order from compiling again.
set -eu
skip () { echo "skipped: $*"; exit 0; }
if [ "${1:-}" = --inside ]; then
  shift
else # in a mount namespace of its own: nothing stays mounted, however this ends
  unshare --mount mount -t proc proc /proc 2>/dev/null || skip "needs root and leave to mount"
  exec unshare --mount --propagation private sh "$0" --inside "$@"
fi
repo=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$repo/build-fresh}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
base=$folder/base cache=$folder/ccache root=

# Addresses in sources.list, of one line each or in deb822 form; the first that is no security archive.
package_source () {
  cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
    sed -nE 's/^(deb (\[[^]]*\] *)?|URIs: *)([a-z]+:[^ ]+).*/\3/p' | grep -v security | head -n 1
}

command -v debootstrap >/dev/null || skip "needs debootstrap"
source=$(package_source) || true
[ -n "$source" ] || skip "this machine has no package source of Debian"

leave () {
  [ -n "$root" ] || return 0
  umount --lazy --recursive "$root/proc" "$root/dev" "$root/ccache" 2>/dev/null || true # a child may hold /dev/null
  rm -rf --one-file-system "$root"
  root=
}
trap leave EXIT
trap 'exit 1' INT TERM HUP

if [ ! -e "$base/.done" ]; then
  rm -rf "$base"
  debootstrap --variant=minbase --include=ca-certificates,git,ccache bookworm "$base" "$source" >"$folder/debootstrap.log" 2>&1 ||
    { tail -n 5 "$folder/debootstrap.log"; skip "debootstrap did not get a system from this machine's package source"; }
  touch "$base/.done"
fi

# A new machine with the checkout in /root/perilune.
enter () {
  root=$(mktemp -d "$folder/machine.XXXXXX")
  cp -a "$base/." "$root"
  cp -r /etc/apt/. "$root/etc/apt" # source, proxy and keys
  for f in /etc/resolv.conf /etc/hosts; do if [ -e $f ]; then cp $f "$root$f"; fi; done
  if [ -d /usr/local/share/ca-certificates ]; then
    cp -r /usr/local/share/ca-certificates "$root/usr/local/share/"
    chroot "$root" update-ca-certificates >/dev/null 2>&1 || true
  fi
  mkdir -p "$cache" "$root/ccache"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev" # with its terminals
  mount --bind "$cache" "$root/ccache"
  git -c safe.directory='*' clone -q "$repo" "$root/root/perilune"
}

# in_it COMMAND...: in the new machine; its output in $root/log
in_it () {
  echo "== $*"
  begin=$(date +%s)
  status=0
  # shellcheck disable=SC2046 # a list of NAME=VALUE
  env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin CCACHE_DIR=/ccache CMAKE_C_COMPILER_LAUNCHER=ccache \
    $(env | grep -i '^[a-z]*_proxy=' || true) \
    chroot "$root" /bin/sh -c "cd /root/perilune && $*" >"$root/log" 2>&1 || status=$?
  if [ $status -ne 0 ]; then
    grep -B 25 'FAILED' "$root/log" || true
    tail -n 20 "$root/log"
    echo "== failed with status $status: $*"
    exit 1
  fi
  tail -n 1 "$root/log"
  echo "   $(($(date +%s) - begin)) s"
}

again () { # the same once more, from what is there
  in_it "$*"
  if grep -E '^perilune: (building|installing)' "$root/log"; then
    echo "== built something the second time: $*"
    exit 1
  fi
}

recipe='./perilune run recipes/r1_zero.lua --updates 2'
few='./perilune test core repl program rows stories' # some of each kind, and those that need ../shared

enter
in_it "$recipe"
grep -q '^perilune: building all \[' "$root/log" || { echo "== the first build shows no progress"; exit 1; }
again "$recipe"
in_it ./perilune test
again "$few"
leave

enter
in_it "$few"
again "$few"
again "$recipe"
again "$recipe"
leave
echo "both commands work in both orders, and twice"
