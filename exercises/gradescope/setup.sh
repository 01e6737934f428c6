#!/usr/bin/env bash
# Gradescope runs this once, when the autograder's image is built. The zip holds this script, run_autograder, and the
# course in course/ (a clone with its solutions or without; grading does not read them).
set -euo pipefail
AUTOGRADER="${AUTOGRADER:-/autograder}"
apt-get update
apt-get install -y python3-venv
python3 -m venv "$AUTOGRADER/venv"
"$AUTOGRADER/venv/bin/pip" install "$AUTOGRADER/source/course[notebooks]"
