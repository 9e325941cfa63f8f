#!/bin/sh
# What docs/design/adding.md says that adding a thing takes is enough: its blocks go into a copy of the sources, which
# is built, tested and used.
#   tests/adding.sh [FOLDER]     where the copy goes, a new one (default: in /tmp, removed when all went well)
set -eu
root=$(cd "$(dirname "$0")/.." && pwd -P)
page=$root/docs/design/adding.md
copy=${1:-$(mktemp -d)}
program=$root/build/perilune
[ -x "$program" ] || { echo "adding: $program is not built" >&2; exit 1; }

mkdir -p "$copy"
(cd "$root" && git ls-files -z | xargs -0 tar cf - 2>/dev/null) | tar xf - -C "$copy"
"$program" run "$root/tests/adding.lua" "$page" "$copy"

cd "$copy"
build=build
cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
ninja -C $build perilune perilune-testing test_math >build.log || { cat build.log; exit 1; }
p=$copy/$build/perilune
"$p" run bindings/gen.lua >/dev/null # stubs and pages, as one who adds an op does
"$build/tests/c/test_math"
"$copy/$build/perilune-testing" test op_ activations nn names help rooms gguf_arch program
"$p" run tests/adding.lua docs/design/adding.md # the runs
"$p" recipes | grep two_arms
"$p" run recipes/two_arms.lua --steps 60 --runs runs
"$p" --help | grep 'count MODEL TEXT'
[ "$("$p" count tests/data/tokenizers/sentencepiece/bpe_user.model "a")" -ge 1 ]
[ $# -ge 1 ] || rm -rf "$copy"
echo "adding: ok"
