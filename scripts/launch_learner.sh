#!/usr/bin/env bash
# Starts one learner process: scripts/launch_learner.sh CONFIG.toml ... [--section.key value] ...
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/scripts/env.sh"
ensure_env || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$LRPO_PYTHON" -m learner.launch "$@"
