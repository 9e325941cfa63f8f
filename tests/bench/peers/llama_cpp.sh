#!/bin/sh
# Build llama.cpp, the peer of `perilune bench infer`, outside the repository, from the source
# package of llama-cpp-python on PyPI: ${PERILUNE_PEERS:-~/.cache/perilune-peers}/llama.cpp/bin.
# With a GGUF file of SmolLM2-135M-Instruct as argument it also makes the files of all types that the
# benchmark loads, in ${PERILUNE_PEERS:-~/.cache/perilune-peers}/models. Never run by tests. Takes about
# 15 minutes on two cores.
set -eu
version=0.3.36
dir=${PERILUNE_PEERS:-$HOME/.cache/perilune-peers}
[ -x "$dir/bin/python" ] || python3 -m venv "$dir"
src=$dir/llama.cpp-src
mkdir -p "$src"
[ -e "$src/llama_cpp_python-$version.tar.gz" ] ||
  "$dir/bin/pip" download --no-deps --no-build-isolation --no-binary llama-cpp-python \
    "llama-cpp-python==$version" -d "$src" ||
  "$dir/bin/pip" download --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" -d "$src"
tar -xzf "$src/llama_cpp_python-$version.tar.gz" -C "$src"
cmake -S "$src/llama_cpp_python-$version/vendor/llama.cpp" -B "$dir/llama.cpp" -G Ninja \
  -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
  -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DBUILD_SHARED_LIBS=OFF
ninja -C "$dir/llama.cpp" llama-bench llama-batched-bench llama-perplexity llama-quantize
if [ $# -gt 0 ]; then
  mkdir -p "$dir/models"
  for type in F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q4_K_M; do
    "$dir/llama.cpp/bin/llama-quantize" --allow-requantize "$1" "$dir/models/smollm2-$type.gguf" $type 2
  done
fi
