#!/usr/bin/env bash
# Set-up, lint, all tests. Arguments go to pytest: bash tests/run.sh tests/data -k packing
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh tests/requirements.txt
ruff check .
ruff format --check .
export JAX_PLATFORMS=cpu
if [ $# -gt 0 ]; then python -m pytest "$@"; else python -m pytest -n 2 --dist loadgroup --durations 10; fi
