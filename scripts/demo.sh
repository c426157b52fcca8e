#!/usr/bin/env bash
# Makes the environment, the data and a warm-started policy, then trains it in a real run that visibly learns:
#   ./scripts/demo.sh [--config FILE.toml] [--run-dir DIR] [--steps N] [--seed N] [--section.key value ...]
# Given again, the same command resumes a run that was interrupted.
export LRPO_DEVICE=cpu # even on a machine with a GPU: with NCCL, learner and engines cannot share one
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/scripts/env/env.sh"
ensure_env || exit 1
exec "$root/scripts/env/run.sh" scripts.world.demo "$@"
