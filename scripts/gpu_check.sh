#!/usr/bin/env bash
# Checks on the GPU of this machine what no other machine can: scripts/gpu_check.sh [--out DIR]
# Needs no network and at most eight minutes. Takes PYTHON if it is set, otherwise .venv-gpu, otherwise python3, whatever
# versions of torch and transformers that has.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
[[ -n ${PYTHON:-} || ! -x $root/.venv-gpu/bin/python ]] || python="$root/.venv-gpu/bin/python"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TQDM_DISABLE=1
exec "$python" -m scripts.gpu_check "$@"
