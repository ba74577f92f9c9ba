#!/usr/bin/env bash
# Makes the environments of the real servers that the tests marked `servers` start: .venv-serve for `transformers serve`
# and .venv-vllm for vLLM. Each is apart from .venv, as each brings packages that the others must not have.
# Run again at any time: what is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=.venv-serve
transformers="transformers[serving]==$(sed -n 's/^transformers==//p' constraints.txt)"
torch="torch==$(sed -n 's/^torch==//p' constraints.txt)"
ready="$folder/ready"

say() { echo "tests/servers/setup: $*"; }
install() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

if [ -f "$ready" ] && [ "$(cat "$ready")" = "$transformers $torch" ]; then
    say "$folder is ready ($transformers, $torch)"
else
    rm -f "$ready"
    [ -x "$folder/bin/python" ] || python3 -m venv "$folder"
    say "installing $torch, then $transformers (minutes)"
    # Torch first, so that nothing that needs it asks for a build with gigabytes of CUDA packages.
    install "$torch"
    install "$torch" "$transformers"
    echo "$transformers $torch" > "$ready"
    say "$folder is ready"
fi
if [ "$(uname -s) $(uname -m)" = "Linux x86_64" ]; then
    bash bench/vllm_environment.sh
else
    say "no .venv-vllm: vLLM's CPU build is for Linux on x86-64"
fi
