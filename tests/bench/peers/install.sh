#!/bin/sh
# Install the peers of the benchmarks (the newest torch and JAX, about 6 GB) into a virtual
# environment outside the repository: ${PERILUNE_PEERS:-~/.cache/perilune-peers}. Never run by tests.
set -eu
dir=${PERILUNE_PEERS:-$HOME/.cache/perilune-peers}
[ -x "$dir/bin/python" ] || python3 -m venv "$dir"
"$dir/bin/pip" install --upgrade torch jax numpy
"$dir/bin/python" -c 'import torch, jax; print("torch", torch.__version__, "jax", jax.__version__)'
