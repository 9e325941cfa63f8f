#!/bin/sh
# Builds with counters, runs the tests, says how much of each folder they reached.
#   tests/coverage/run.sh BUILD [ATLEAST [PREFIX]]   at least so many percent of each folder, 90 by default;
#                                                    PREFIX: name what did not run in files that begin so
# Fuzzers do not count: they ask for no more than that nothing breaks. Neither do files outside of the
# checkout, so that the figures are the same on every machine.
set -u
build=$1 least=${2:-90} prefix=${3:-}
cd "$(dirname "$0")/../.." || exit 1
cmake -S . --preset coverage -B "$build" -DCMAKE_C_COMPILER=gcc >/dev/null || exit 1
# shellcheck disable=SC2046 # a list of targets
ninja --quiet -C "$build" perilune-testing perilune-sandbox $(cd tests/c && printf '%s\n' test_*.c | sed 's/\.c$//') || exit 1
build=$(cd "$build" && pwd)
counted=$build/counted # stands for the checkout: its Lua files count what runs
find "$build" -name '*.gcda' -delete
rm -rf "$counted"
git ls-files lua | sed -n 's,^lua/\(perilune/.*\.lua\)$,\1,p' >"$build/lua.txt"
sed 's,/[^/]*$,,' "$build/lua.txt" | sort -u | sed "s,^,$counted/lua/," | xargs mkdir -p
lua5.4 tests/coverage/statements.lua lua "$counted/lua" <"$build/lua.txt" || exit 1
ln -s "$PWD/recipes" "$PWD/tests" "$counted"
export PERILUNE_HITS="$counted/hits.txt" PERILUNE_LUA="$counted/lua" PERILUNE_DATA=/nonexistent
: >"$PERILUNE_HITS"

tests/run.sh "$build" lua/ c/
status=$?
lua5.4 tests/coverage/report.lua "$build" "$least" ${prefix:+"$prefix"} && exit $status
exit 1
