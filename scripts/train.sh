#!/usr/bin/env bash
# Trains on this machine, with the GPUs that it has: starts the learner, the reward process and the actors, and ends them:
#   scripts/train.sh CONFIG.toml ... [--actors N] [--section.key value] ...
# Given again, the same command resumes a run that was interrupted.
exec "$(dirname "${BASH_SOURCE[0]}")/env/run.sh" scripts.ops.train "$@"
