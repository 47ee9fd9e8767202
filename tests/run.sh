#!/usr/bin/env bash
# Runs set-up, lint, type check and tests.
#
#   bash tests/run.sh                          all tests
#   bash tests/run.sh fast                     without the files of slow_tests.txt; takes a few minutes
#   bash tests/run.sh tests/data -k packing    these arguments go to pytest
#
# With TESTS_SKIP_NOTHING=1, a missing program of system_packages.txt is an error; otherwise, tests that need it are
# skipped.
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
