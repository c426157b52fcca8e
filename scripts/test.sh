#!/usr/bin/env bash
# Checks style and types, and runs the tests. Arguments go to pytest; paths are relative to the repository's root:
#   ./scripts/test.sh -k router      ./scripts/test.sh -m "not e2e"      ./scripts/test.sh -m slow tests/system
# A failure names the seed of everything that the tests drew; --seed N draws the same again. With CI set, the seed is 0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LRPO_DEVICE="${LRPO_DEVICE:-cpu}"
source scripts/env/env.sh
ensure_env || exit 1
"$LRPO_PYTHON" -m ruff check .
"$LRPO_PYTHON" -m ruff format --check .
# Types are checked while the tests run. What mypy finds is printed when both are done.
types="$(mktemp)"
"$LRPO_PYTHON" -m mypy >"$types" 2>&1 &
checker=$!
trap 'kill "$checker" 2>/dev/null || true; rm -f "$types"' EXIT # mypy has usually ended by then
tests_failed=0 types_failed=0
# The tests of a file stay together, and the longest files begin first (tests/conftest.py).
cores="$(env -u OMP_NUM_THREADS nproc)" # nproc obeys that variable
workers="${LRPO_TEST_WORKERS:-$((cores < 2 ? 1 : 2))}"
"$LRPO_PYTHON" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@" || tests_failed=$?
wait "$checker" || types_failed=$?
cat "$types"
exit $((tests_failed ? tests_failed : types_failed))
