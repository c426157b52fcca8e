#!/usr/bin/env bash
# Runs a module in the environment, which it makes if need be: scripts/run.sh MODULE ARGUMENT ...
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/scripts/env.sh"
ensure_env || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$LRPO_PYTHON" -m "$@"
