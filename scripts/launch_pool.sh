#!/usr/bin/env bash
# Starts the processes of a pool file over ssh and as Slurm jobs; with --dry-run it only prints the commands:
#   scripts/launch_pool.sh POOL.toml [--dry-run] [--role ROLE] [--together] CONFIG.toml ... [--section.key value] ...
exec "$(dirname "${BASH_SOURCE[0]}")/env/run.sh" scripts.pool.launch "$@"
