#!/usr/bin/env bash
# How a run goes, live: scripts/status.sh RUN_DIR
exec "$(dirname "${BASH_SOURCE[0]}")/env/run.sh" scripts.ops.status "$@"
