#!/usr/bin/env bash
# Everything in one command: environment, data, a warm-started policy, and a real training run that visibly learns.
#   ./scripts/demo.sh [--config FILE.toml] [--run-dir DIR] [--steps N] [--seed N] [--section.key value ...]
# The same command again resumes a run that was interrupted.
export LRPO_DEVICE=cpu CUDA_VISIBLE_DEVICES= # whatever there is: learner and engines cannot share a GPU by NCCL
exec "$(dirname "${BASH_SOURCE[0]}")/env/run.sh" scripts.world.demo "$@"
