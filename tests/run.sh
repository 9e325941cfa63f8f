#!/bin/sh
# Runs the tests of a build folder and counts them: the cmocka programs, the fuzzers, the LuaUnit
# files (each in a process of its own), the code blocks of the docs.
#   tests/run.sh BUILD [WORD ...]     only those whose name contains one of the words
# Prints one line for each and the output of what failed; the last line is "N passed, N failed".
set -u
build=$(cd "$1" && pwd) || exit 1
shift
cd "$(dirname "$0")/.." || exit 1
words="$*"
logs=$build/tests/log
mkdir -p "$logs"
passed=0
failed=0
: "${PERILUNE_LUA:=$PWD/lua}"
export PERILUNE_LUA
export CMOCKA_MESSAGE_OUTPUT=STDOUT

wanted () {
  [ -z "$words" ] && return 0
  for w in $words; do case $1 in *"$w"*) return 0 ;; esac; done
  return 1
}

# count NAME STATUS PASSED FAILED: a program that dies without saying so is one failure
count () {
  p=${3:-0} f=${4:-0}
  [ "$2" -ne 0 ] && [ "$f" -eq 0 ] && f=1
  [ "$2" -eq 0 ] && [ "$p" -eq 0 ] && [ "$f" -eq 0 ] && p=1
  passed=$((passed + p)) failed=$((failed + f))
  if [ "$f" -eq 0 ]; then
    printf '%-34s %5d passed\n' "$1" "$p"
    grep '^skipped: ' "$logs/$1.log" | sort | uniq -c | sed 's/^ */    /'
  else
    sed 's/^/    /' "$logs/$1.log"
    printf '%-34s %5d passed %5d FAILED (status %d)\n' "$1" "$p" "$f" "$2"
  fi
}

for t in tests/c/test_*.c; do
  [ -e "$t" ] || continue
  n=$(basename "$t" .c)
  wanted "c/$n" || continue
  "$build/tests/c/$n" >"$logs/c-$n.log" 2>&1
  s=$?
  count "c-$n" $s "$(grep -c '^\[       OK \]' "$logs/c-$n.log")" \
    "$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test(s), listed.*/\1/p' "$logs/c-$n.log" |
       awk '{ n += $1 } END { print n + 0 }')"
done

for t in tests/fuzz/*.c; do
  [ -e "$t" ] || continue
  n=$(basename "$t" .c)
  wanted "fuzz/$n" || continue
  "$build/tests/fuzz/$n" >"$logs/fuzz-$n.log" 2>&1
  count "fuzz-$n" $? 0 0
done

lua_file () { # NAME FILE
  "$build/perilune-testing" run tests/lua/run.lua "$2" >"$logs/$1.log" 2>&1
  s=$?
  last=$(tail -n 1 "$logs/$1.log")
  p=$(printf '%s\n' "$last" | sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p')
  f=$(printf '%s\n' "$last" | sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p')
  [ -z "$p" ] && [ $s -eq 0 ] && s=1 # it ended without a count
  count "$1" $s "$p" "$f"
}
best=$("$build/perilune-testing" info 2>/dev/null | sed -n 's/^simd *//p')
levels=
for level in portable avx2 avx512; do
  [ "$level" = "$best" ] && continue
  PERI_SIMD=$level "$build/perilune-testing" info >/dev/null 2>&1 && levels="$levels $level"
done
for t in tests/lua/test_*.lua; do
  [ -e "$t" ] || continue
  n=$(basename "$t" .lua)
  wanted "lua/$n" || continue
  lua_file "lua-$n" "$t"
  # Ops must hold at every level that the processor has, not only at its best one.
  case $n in test_op_*)
    for level in $levels; do PERI_SIMD=$level lua_file "lua-$n-$level" "$t"; done ;;
  esac
done

printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
