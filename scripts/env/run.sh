#!/usr/bin/env bash
# Runs a Python module in the environment of this machine's device, which must be there and up to date:
#   scripts/env/run.sh MODULE ARGUMENT ...
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
source "$root/scripts/env/env.sh"
require_env || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$LRPO_PYTHON" -m "$@"
