#!/usr/bin/env bash
# Makes .venv-peers: distilabel in an environment of its own, for the benches that measure it beside ours.
set -euo pipefail
cd "$(dirname "$0")/.."
# It imports `requests` and doesn't say so.
bash bench/environment.sh .venv-peers transformers accelerate distilabel==1.5.3 requests==2.34.2
.venv-peers/bin/python -c "from distilabel.models import TransformersLLM"
