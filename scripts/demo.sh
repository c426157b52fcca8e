#!/usr/bin/env bash
# Makes the environment, the data and a warm-started policy, then trains it in a real run that visibly learns:
#   ./scripts/demo.sh [--config FILE.toml] [--run-dir DIR] [--steps N] [--seed N] [--section.key value ...]
# Given again, the same command resumes a run that was interrupted.
export LRPO_DEVICE=cpu CUDA_VISIBLE_DEVICES= # even on a machine with a GPU: with NCCL, learner and engines cannot share one
exec "$(dirname "${BASH_SOURCE[0]}")/env/run.sh" scripts.world.demo "$@"
