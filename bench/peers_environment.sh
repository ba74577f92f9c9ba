#!/usr/bin/env bash
# Makes .venv-peers: distilabel in an environment of its own, for the benches that measure it beside ours.
# It imports `requests` and doesn't say so. Run again at any time: what is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=.venv-peers
distilabel="distilabel==1.5.3"
pinned() { echo "$1==$(sed -n "s/^$1==//p" constraints.txt)"; }
torch="$(pinned torch)"
transformers="$(pinned transformers)"
ready="$folder/ready"

say() { echo "peers_environment: $*"; }
install() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

if [ -f "$ready" ] && [ "$(cat "$ready")" = "$distilabel $transformers $torch" ]; then
    say "$folder is ready ($distilabel, $transformers, $torch)"
    exit 0
fi
rm -f "$ready"
[ -x "$folder/bin/python" ] || python3 -m venv "$folder"
say "installing $torch, then $distilabel with $transformers (minutes)"
# Torch first, so that nothing that needs it asks for a build with gigabytes of CUDA packages.
install "$torch"
install "$torch" "$transformers" "$(pinned accelerate)" "$distilabel" requests
"$folder/bin/python" -c "from distilabel.models import TransformersLLM"
echo "$distilabel $transformers $torch" > "$ready"
say "$folder is ready"
