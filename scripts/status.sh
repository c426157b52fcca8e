#!/usr/bin/env bash
# Shows the state of a run, live: scripts/status.sh RUN_DIR [--every SECONDS] [--once]
exec "$(dirname "${BASH_SOURCE[0]}")/env/run.sh" scripts.ops.status "$@"
