#!/usr/bin/env bash
# Style, types and tests. Arguments go to pytest, with paths from the repository's root:
#   ./scripts/test.sh -k router      ./scripts/test.sh -m "not e2e"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LRPO_DEVICE="${LRPO_DEVICE:-cpu}"
[[ $LRPO_DEVICE == gpu ]] || export CUDA_VISIBLE_DEVICES=
source scripts/env/env.sh
ensure_env || exit 1
"$LRPO_PYTHON" -m ruff check .
"$LRPO_PYTHON" -m ruff format --check .
"$LRPO_PYTHON" -m mypy
exec "$LRPO_PYTHON" -m pytest "$@"
