#!/usr/bin/env bash
# Makes the environment of this machine's device unless it is complete: .venv-gpu where nvidia-smi lists a GPU, else .venv-cpu.
#   ./scripts/setup.sh [--update]
# --update installs what has changed in scripts/env/*.txt into the environment that is there, instead of making it anew.
# LRPO_DEVICE=cpu or gpu chooses the device, PYTHON=/path/to/python the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env/env.sh
case "$*" in
    "") ensure_env || exit 1 ;;
    --update) update_env || exit 1 ;;
    *)
        echo "usage: [LRPO_DEVICE=cpu|gpu] [PYTHON=/path/to/python] ./scripts/setup.sh [--update]" >&2
        exit 2
        ;;
esac
echo "$(dirname "$(dirname "$LRPO_PYTHON")") is ready. To use it: source .venv-$LRPO_DEVICE/bin/activate; lrpo --help"
