#!/usr/bin/env bash
# Runs a Python module in the environment, and first builds the environment if it is missing or out of date:
#   scripts/env/run.sh MODULE ARGUMENT ...
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
source "$root/scripts/env/env.sh"
ensure_env || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$LRPO_PYTHON" -m "$@"
