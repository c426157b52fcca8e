#!/usr/bin/env bash
# Starts one reward process: scripts/launch_reward.sh CONFIG.toml ... [--section.key value] ...
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/scripts/env.sh"
ensure_env || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$LRPO_PYTHON" -m reward "$@"
