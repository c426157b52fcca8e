#!/usr/bin/env bash
# Everything in one command: environment, data, a warm-started policy, and a real training run that visibly learns.
#   ./scripts/demo.sh [--config FILE.toml] [--run-dir DIR] [--steps N] [--seed N] [--section.key value ...]
# The same command again resumes a run that was interrupted.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export LRPO_DEVICE=cpu CUDA_VISIBLE_DEVICES= # whatever there is: learner and engines cannot share a GPU by NCCL
source "$root/scripts/env.sh"
ensure_env || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$LRPO_PYTHON" -m scripts.demo "$@"
