#!/usr/bin/env bash
# Everything in one command: environment, data, a warm-started policy, and a real training run that visibly learns.
#   ./scripts/demo.sh [--run-dir DIR] [--steps N] [--seed N] [--section.key value ...]
# The same command again resumes a run that was interrupted.
exec "$(dirname "${BASH_SOURCE[0]}")/run.sh" scripts.demo "$@"
