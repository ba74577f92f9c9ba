#!/usr/bin/env bash
# Makes the environments of the real servers that the tests marked `servers` start: .venv-serve for `transformers serve`
# and .venv-vllm for vLLM. Each is apart from .venv, as each brings packages that the others must not have.
# Run again at any time: what is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."

bash bench/environment.sh .venv-serve "transformers[serving]"
if [ "$(uname -s) $(uname -m)" = "Linux x86_64" ]; then
    bash bench/vllm_environment.sh
else
    echo "no .venv-vllm: vLLM's CPU build is for Linux on x86-64"
fi
