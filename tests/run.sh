#!/usr/bin/env bash
# Set-up, lint, type check, tests.
#
#   bash tests/run.sh                          all of them
#   bash tests/run.sh fast                     without those of slow_tests.txt: a few minutes
#   bash tests/run.sh tests/data -k packing    what pytest is given
#
# TESTS_SKIP_NOTHING=1: a missing program of system_packages.txt is an error; else tests that need it are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh tests/requirements.txt
python -m tests.system
ruff check .
ruff format --check .
mypy
export JAX_PLATFORMS=cpu
all=(-n 2 --dist loadgroup)
case ${1:-all} in
  all) python -m pytest "${all[@]}" --durations 10 ;;
  fast) python -m pytest "${all[@]}" --fast "${@:2}" ;;
  *) python -m pytest "$@" ;;
esac
