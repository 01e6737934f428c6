#!/usr/bin/env bash
# The tests under several Pythons: with what pip brings by default, and with exactly the lowest versions of pyproject.toml.
#
#   tests/versions.sh python3.13 python3.11         the first with pip's defaults, the last with the lowest versions too
#   PARTS="tests/test_video.py" tests/versions.sh   some of the tests only
#
# Each combination gets a fresh virtual environment in a temporary folder (several gigabytes, removed at the end). The
# table at the end says what was installed and how the tests went.
set -uo pipefail
cd "$(dirname "$0")/.."

pythons=("$@")
[ ${#pythons[@]} -gt 0 ] || pythons=(python3)
oldest=${pythons[-1]}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
table="$folder/table"
failures=0

lowest() {  # "name>=version" of pyproject.toml → "name==version", those of the tests too
    "$1" - <<'PYTHON'
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["test"]:
    print(re.sub(r">=", "==", requirement))
PYTHON
}

check() {  # python, label, packages...
    local python=$1 label=$2 venv="$folder/venv" log="$folder/log"
    shift 2
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" || ! "$venv/bin/pip" install --quiet "$@"; then
        echo "$label: not installed" >>"$table"
        failures=$((failures + 1))
        return
    fi
    # shellcheck disable=SC2086  # PARTS are several words
    "$venv/bin/python" -m pytest -q -p no:cacheprovider ${PARTS:-} | tee "$log"
    local ended=${PIPESTATUS[0]}
    [ "$ended" -eq 0 ] || failures=$((failures + 1))
    "$venv/bin/python" - "$label" "$(tail -n 1 "$log")" "$ended" >>"$table" <<'PYTHON'
import platform
import sys
from importlib.metadata import version

names = ("torch", "transformers", "tokenizers", "safetensors", "av", "pillow", "numpy")
label, result, ended = sys.argv[1:]
print(f"{label}: Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names))
print(f"    {result} (pytest ended with {ended})")
PYTHON
}

for python in "${pythons[@]}"; do
    check "$python" "defaults" ".[test]"
done
mapfile -t packages < <(lowest "$oldest")
check "$oldest" "lowest" "${packages[@]}"

echo
cat "$table"
[ "$failures" -eq 0 ]
