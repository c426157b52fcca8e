#!/usr/bin/env bash
# Ends with code 0 if a process of a run answers:
#   scripts/ops/health.sh learner|reward|actor CONFIG.toml ... [--section.key value] ...
exec "$(dirname "${BASH_SOURCE[0]}")/../env/run.sh" scripts.ops.health "$@"
