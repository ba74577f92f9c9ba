#!/usr/bin/env bash
# Makes an environment of its own beside .venv, for packages that .venv must not have, with constraints.txt's torch:
#     bench/environment.sh FOLDER REQUIREMENT...
# A requirement without a version gets the one in constraints.txt. Run again at any time: what is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$1
shift
# The version of the package, whatever extras are asked for.
pinned() {
    version="$(sed -n "s/^${1%%\[*}==//p" constraints.txt)"
    [ -n "$version" ] || { echo "bench/environment.sh: $1: constraints.txt has no version of it" >&2; exit 1; }
    echo "$1==$version"
}
torch="$(pinned torch)"
wanted=()
for requirement in "$@"; do
    case $requirement in
        *==*) wanted+=("$requirement") ;;
        *) wanted+=("$(pinned "$requirement")") ;;
    esac
done
ready="$folder/ready"
made="$torch ${wanted[*]}"

if [ -f "$ready" ] && [ "$(cat "$ready")" = "$made" ]; then
    echo "$folder is ready ($made)"
    exit 0
fi
install() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
rm -f "$ready"
[ -x "$folder/bin/python" ] || python3 -m venv "$folder"
echo "$folder: installing $made (minutes)"
# Torch first, so that nothing that needs it asks for a build with gigabytes of CUDA packages.
install "$torch"
install "$torch" "${wanted[@]}"
echo "$made" > "$ready"
echo "$folder is ready"
