#!/bin/sh
# Runs the tests of a build folder and counts them: the cmocka programs, the fuzzers, the C programs of
# the docs, the LuaUnit files (each in a process of its own), among them the Lua blocks of the docs.
#   tests/run.sh BUILD [WORD ...]     only those whose name contains one of the words; one that ends
#                                     with $ stands at the end of the name
#   tests/run.sh --check [WORD ...]   only look at the words: 0 good, 2 a word of no test, 3 help asked for
# As many run at once as there are processors. Prints one line for each, in their order, and the output of what
# failed; the last line is "N passed, N failed".
set -u
unset CDPATH
build=
[ "$1" = --check ] || build=$(cd "$1" && pwd) || exit 1
shift
cd "$(dirname "$0")/.." || exit 1
words="$*"

# Every test's name: c/test_core, fuzz/fuzz_json, lua/test_nn.
names () {
  for t in tests/c/test_*.c tests/fuzz/*.c tests/lua/test_*.lua; do
    [ -e "$t" ] && printf '%s\n' "$t"
  done | sed 's,^tests/,,; s,\.[a-z]*$,,'
  doc_programs
}

# The C blocks of docs/: docs/c_api_1 is the first of docs/c_api.md (tests/CMakeLists.txt makes programs of them).
doc_programs () {
  awk 'FNR == 1 { n = 0; name = FILENAME; sub(/\.md$/, "", name) } /^```c$/ { print name "_" ++n }' docs/*.md
}

# The names without what all have in common, in lines of a terminal's width.
list () { names | sed 's,/test_,/,; s,/fuzz_,/,' | tr '\n' ' ' | fold -s -w 96 | sed 's/^/  /; s/ *$//'; echo; }

wanted () {
  [ -z "$words" ] && return 0
  for w in $words; do case $1\$ in *"$w"*) return 0 ;; esac; done
  return 1
}

# A word that chooses nothing is a slip, whatever the others choose.
known () {
  for n in $(names) $(names | sed 's,/test_,/,; s,/fuzz_,/,'); do case $n\$ in *"$1"*) return 0 ;; esac; done
  return 1
}

for w in $words; do
  case $w in
    -h | --help)
      echo "usage: ./perilune test [WORD ...]"
      echo "Builds and runs the tests: all, or those whose name contains one of the words. There are:"
      list
      exit 3 ;;
    -*)
      echo "perilune test: $w is no option; words choose tests, and --help lists them" >&2
      exit 2 ;;
  esac
  known "$w" && continue
  echo "perilune test: no test has '$w' in its name; there are:" >&2
  list >&2
  exit 2
done
[ -n "$build" ] || exit 0

logs=$build/tests/log
mkdir -p "$logs"
: "${PERILUNE_LUA:=$PWD/lua}"
export PERILUNE_LUA
export CMOCKA_MESSAGE_OUTPUT=STDOUT

# What is to run, a line each: its kind, its name, and a level of SIMD that is not the best.
jobs_wanted () {
  for t in tests/c/test_*.c; do
    n=$(basename "$t" .c)
    wanted "c/$n" || wanted "c/${n#test_}" || continue
    echo c "$n"
  done
  for t in tests/fuzz/*.c; do
    n=$(basename "$t" .c)
    wanted "fuzz/$n" || wanted "fuzz/${n#fuzz_}" || continue
    echo fuzz "$n"
  done
  for t in $(doc_programs); do
    wanted "$t" && echo docs "$(basename "$t")"
  done
  best=$("$build/perilune-testing" info 2>/dev/null | sed -n 's/^simd *//p')
  levels=
  for level in portable avx2 avx512; do
    [ "$level" = "$best" ] && continue
    PERI_SIMD=$level "$build/perilune-testing" info >/dev/null 2>&1 && levels="$levels $level"
  done
  for t in tests/lua/test_*.lua; do
    n=$(basename "$t" .lua)
    wanted "lua/$n" || wanted "lua/${n#test_}" || continue
    echo lua "$n"
    # Ops must hold at every level that the processor has, not only at its best one.
    case $n in test_op_*) for level in $levels; do echo lua "$n" "$level"; done ;; esac
  done
}

# One of them, in a process of its own: its output into NAME.log; status, passed, failed and skipped into NAME.result.
# shellcheck disable=SC2016 # the inner shell expands
one='
  name=$1-$2${3:+-$3} log=$logs/$1-$2${3:+-$3}.log
  p=0 f=0 k=0
  case $1 in
    lua)
      [ -z "${3:-}" ] || export PERI_SIMD="$3"
      "$build/perilune-testing" run tests/lua/run.lua "tests/lua/$2.lua" >"$log" 2>&1
      s=$?
      last=$(tail -n 1 "$log")
      p=$(printf "%s\n" "$last" | sed -n "s/^\([0-9]*\) passed, [0-9]* failed$/\1/p")
      f=$(printf "%s\n" "$last" | sed -n "s/^[0-9]* passed, \([0-9]*\) failed$/\1/p")
      [ -z "$p" ] && [ $s -eq 0 ] && s=1 # it ended without a count
      k=$(sed -n "s/^\([0-9]*\) skipped$/\1/p" "$log" | tail -n 1) ;;
    *)
      file=$build/tests/$1/$2
      if [ -x "$file" ]; then
        "$file" >"$log" 2>&1
        s=$?
      else
        echo "$file was not built" >"$log"
        s=127
      fi
      case $1 in c)
        p=$(grep -c "^\[       OK \]" "$log")
        f=$(sed -n "s/^\[  FAILED  \] \([0-9]*\) test(s), listed.*/\1/p" "$log" | awk "{ n += \$1 } END { print n + 0 }")
        k=$(grep -c "^\[  SKIPPED \] [^0-9]" "$log") ;;
      esac ;;
  esac
  echo "$s ${p:-0} ${f:-0} ${k:-0}" >"$logs/$name.result"
  echo "$name"'
export build logs

# The lines of all, in their order, each as soon as it and those before it have ended; then the count. A program that
# dies without saying so is one failure, and so is one that was never run.
passed=0
failed=0
skipped=0
tell () { # NAME
  s=1 p=0 f=0 k=0
  if [ -e "$logs/$1.result" ]; then read -r s p f k <"$logs/$1.result"; else echo "was not run" >"$logs/$1.log"; fi
  [ "$s" -ne 0 ] && [ "$f" -eq 0 ] && f=1
  [ "$s" -eq 0 ] && [ $((p + f + k)) -eq 0 ] && p=1
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + k))
  if [ "$f" -eq 0 ]; then
    printf '%-34s %5d passed%s\n' "$1" "$p" "$([ "$k" -eq 0 ] || printf ' %5d skipped' "$k")"
    grep '^skipped: ' "$logs/$1.log" | sort | uniq -c | sed 's/^ */    /'
  else
    sed 's/^/    /' "$logs/$1.log"
    printf '%-34s %5d passed %5d FAILED (status %d)\n' "$1" "$p" "$f" "$s"
  fi
}
report () { # reads the names of those that ended
  # shellcheck disable=SC2046,SC2086 # lists of names
  set -- $names
  while read -r _; do
    while [ $# -gt 0 ] && [ -e "$logs/$1.result" ]; do tell "$1"; shift; done
  done
  for n in "$@"; do tell "$n"; done
  [ "$skipped" -eq 0 ] || printf '%d skipped\n' "$skipped"
  printf '%d passed, %d failed\n' "$passed" "$failed"
  [ "$failed" -eq 0 ]
}

jobs=$(jobs_wanted)
names=$(printf '%s\n' "$jobs" | tr ' ' '-')
for n in $names; do rm -f "$logs/$n.result"; done
printf '%s\n' "$jobs" | xargs -P "$(nproc)" -L 1 sh -c "$one" one | report
