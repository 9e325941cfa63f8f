#!/bin/sh
# What ./perilune does when: it is run here in a small checkout with tools that only say that they were called.
#   tests/launcher.sh      prints a line for each claim that does not hold; the last line is "N passed, N failed"
set -u
unset CDPATH
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

# A checkout, and a folder of tools that is the whole PATH.
mkdir -p "$work/repo/runtime" "$work/repo/bindings" "$work/repo/tests/c" "$work/repo/tests/fuzz" \
  "$work/repo/tests/lua" "$work/repo/tests/bench" "$work/bin"
cp "$here/perilune" "$work/repo/perilune"
cp "$here/tests/run.sh" "$work/repo/tests/run.sh"
for f in runtime/a.c bindings/main.c CMakeLists.txt tests/c/test_one.c tests/fuzz/fuzz_two.c tests/bench/probe.c; do
  : >"$work/repo/$f"
done
for tool in sh cat find grep sed mkdir rm mv printf readlink dirname basename flock tr fold sort uniq awk tail ls \
            chmod touch sleep id env ln xargs nproc; do
  path=$(command -v $tool) && case $path in /*) ln -s "$path" "$work/bin/$tool" ;; esac
done
export CALLS="$work/calls" BIN="$work/bin"
tool () { # NAME: its text is the standard input
  { echo "#!$(command -v sh)"; cat; } >"$work/bin/$1"
  chmod +x "$work/bin/$1"
}
tool cc </dev/null
tool pkg-config </dev/null
tool lua5.4 </dev/null
# Configuring notes which tests there are; building makes those and counts.
tool cmake <<'END'
echo cmake >>"$CALLS"
cd "$2" && ls tests/c tests/fuzz tests/bench >build/build.ninja
END
tool ninja <<'END'
echo "ninja $3" >>"$CALLS"
[ -z "${NINJA_FAILS:-}" ] || { echo "[1/2] CC a.o"; echo "a.c:1: error: no"; exit 1; }
i=0
while [ $i -lt 40 ]; do i=$((i + 1)); echo "[$i/40] CC $i.o"; done
make () { mkdir -p "${1%/*}"; printf '#!/bin/sh\necho ran "$@"\n' >"$1"; chmod +x "$1"; }
case $3 in
  all) make "$2/perilune"; make "$2/perilune-sandbox" ;;
  tests)
    make "$2/perilune-testing"
    for f in $(cat "$2/build.ninja"); do
      case $f in test_*.c) make "$2/tests/c/${f%.c}" ;; fuzz_*.c) make "$2/tests/fuzz/${f%.c}" ;; esac
    done ;;
  benches) make "$2/tests/bench/probe" ;;
esac
END
tool apt-get <<'END'
echo "apt-get $*" >>"$CALLS"
printf '#!/bin/sh\n' >"$BIN/pkg-config"
"$BIN/chmod" +x "$BIN/pkg-config"
END
tool sudo <<'END'
exec "$@"
END

launch () { # ARG...: output in out, status, the tools that were called in calls
  : >"$CALLS"
  (cd "$work/repo" && PATH="$work/bin" sh ./perilune "$@") >"$work/out" 2>&1
  status=$?
  calls=$(tr '\n' ' ' <"$CALLS")
}
check () { # CLAIM TEST...
  claim=$1
  shift
  if "$@"; then passed=$((passed + 1)); else
    failed=$((failed + 1))
    echo "does not hold: $claim (status $status, called: $calls)"
    sed 's/^/    /' "$work/out"
  fi
}
said () { grep -q -e "$1" "$work/out"; }
older () { find "$work/repo" -path "$work/repo/build" -prune -o -exec touch -d '2 minutes ago' {} +; } # than any stamp

launch build
check "the first time it configures and builds" [ "$calls" = "cmake ninja all " ]
check "a long build shows how far it is" said '^perilune: building all \[20/40\]$'
older
launch build
check "the second time it does neither" [ "$calls$status" = "0" ]
launch --version
check "a command runs what is there" said 'ran --version'
touch "$work/repo/runtime/a.c"
launch build
check "a changed source is built without configuring" [ "$calls" = "ninja all " ]
older
rm "$work/repo/build/build.ninja"
launch build
check "without build.ninja it configures" [ "$calls" = "cmake ninja all " ]
rm "$work/repo/build/perilune"
launch build
check "a program that is gone is built, whatever the stamp says" [ "$calls" = "ninja all " ]

touch "$work/repo/runtime/a.c"
NINJA_FAILS=1
export NINJA_FAILS
launch build
check "a build that fails says what the compiler said" said 'error: no'
check "and ends with 1" [ "$status" -eq 1 ]
unset NINJA_FAILS
launch build
check "and is tried again" [ "$calls" = "ninja all " ]
older

if [ -e /usr/include/cmocka.h ] && [ -e /usr/share/lua/5.4/luaunit.lua ]; then
  launch test
  check "the tests are built and run" [ "$calls" = "ninja tests " ]
  check "every one of them" said '^c-test_one .* 1 passed'
  older
  launch test
  check "the second time nothing is built" [ "$calls" = "" ]
  : >"$work/repo/tests/c/test_three.c"
  launch test
  check "a new test that ninja did not see is configured for" [ "$calls" = "ninja tests cmake ninja tests " ]
  check "and run" said '^c-test_three .* 1 passed'
  older
  rm "$work/repo/build/tests/c/test_one"
  launch test
  check "a test that is gone is built" [ "$calls" = "ninja tests " ]
  rm "$work/bin/pkg-config"
  touch "$work/repo/tests/c/test_one.c"
  launch test
  check "what is missing is installed, and then it configures" \
    [ "$calls" = "apt-get install -y --no-install-recommends pkg-config cmake ninja tests " ]
else
  echo "skipped: the half that needs cmocka and LuaUnit"
fi
older

for word in nosuch one/nosuch -x; do
  launch test "$word"
  check "test $word is refused before anything is built" [ "$calls$status" = 2 ]
done
check "with the options it has" said '--help'
launch test nosuch
check "a word of no test is answered with those that there are" said 'c/one'
launch test --help
check "test --help builds nothing" [ "$calls$status" = 0 ]
check "and lists the tests" said 'fuzz/two'
launch build --help
check "build --help builds nothing" [ "$calls$status" = 0 ]
launch build nothing
check "build refuses words" [ "$calls$status" = 2 ]
: >"$CALLS"
(cd "$work" && CDPATH=$work && export CDPATH && PATH="$work/bin" sh repo/perilune --version) >"$work/out" 2>&1
check "CDPATH leads nowhere else" said 'ran --version'
launch bench --help
check "bench --help builds nothing" [ "$calls$status" = 0 ]
launch bench nosuch
check "bench nosuch is refused before anything is built" [ "$calls$status" = 2 ]
check "with those that there are" said 'probe'
launch bench probe
check "a benchmark is built and run" said '^ran'

printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
