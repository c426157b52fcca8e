# Sourced by the other scripts. `ensure_env || exit 1` builds .venv from scripts/env/*.txt, unless it is complete and up to
# date, and then exports LRPO_PYTHON, LRPO_DEVICE and the settings that every process needs. Two variables change it:
#
#   PYTHON=/path/to/python   the interpreter; by default the first suitable one of python3.11 ... python3
#   LRPO_DEVICE=cpu|gpu      the device; by default gpu where nvidia-smi lists one
# shellcheck shell=bash

_ENV_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
_ENV_VENV="$_ENV_ROOT/.venv"
_ENV_LOG="$_ENV_VENV/install.log"
_ENV_STAMP="$_ENV_VENV/complete" # written last: a .venv without it is not finished

ensure_env() {
    _env_find_device || return 1
    _env_is_current || _env_build_alone || return 1
    export LRPO_PYTHON="$_ENV_VENV/bin/python" LRPO_DEVICE
    export TOKENIZERS_PARALLELISM=false TQDM_DISABLE=1
    if [[ $LRPO_DEVICE == cpu ]]; then
        # Two OpenMP threads on a busy machine cost five to ten times the time of one.
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
    fi
}

_env_error() {
    echo "error: $*" >&2
    return 1
}

_env_find_device() {
    if [[ -z ${LRPO_DEVICE:-} ]]; then
        LRPO_DEVICE=cpu
        if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then LRPO_DEVICE=gpu; fi
    fi
    [[ $LRPO_DEVICE == cpu || $LRPO_DEVICE == gpu ]] || _env_error "LRPO_DEVICE is '$LRPO_DEVICE'; set it to cpu or gpu"
}

_env_version() { "$1" -ISc 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

# The line in a complete .venv that says what it was made from: device, Python version ($1), checksum of the lists.
_env_fingerprint() { echo "$LRPO_DEVICE $1 $(cat "$_ENV_ROOT"/scripts/env/*.txt | cksum)"; }

_env_is_current() {
    local version
    [[ -f $_ENV_STAMP && -x $_ENV_VENV/bin/python ]] || return 1
    version="$(_env_version "$_ENV_VENV/bin/python")" || return 1
    [[ -z ${PYTHON:-} || $(_env_version "$PYTHON") == "$version" ]] || return 1
    [[ $(<"$_ENV_STAMP") == "$(_env_fingerprint "$version")" ]]
}

# If several processes start together, one of them builds and the others wait for it.
_env_build_alone() {
    mkdir -p "$_ENV_ROOT/.cache" || return 1
    (
        if command -v flock >/dev/null && ! flock -n 9; then
            echo "env: waiting for another process that builds .venv" >&2
            flock 9
        fi
        _env_is_current || _env_build
    ) 9>"$_ENV_ROOT/.cache/env.lock"
}

_env_build() {
    local python status found="" candidates=(python3.11 python3.12 python3.13 python3)
    # Building clears the directory. Through a link it would clear a directory that belongs to another checkout.
    [[ ! -L $_ENV_VENV ]] || _env_error "$_ENV_VENV is a link to an environment that is not what scripts/env/*.txt say;" \
        "remove the link to build one here, or bring the environment up to date where it is" || return 1
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    _env_check_disk || return 1
    for python in "${candidates[@]}"; do
        # A version manager's shim may exist and not run, and a distribution may leave out ensurepip.
        "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
        found="$found $python"
        status=0
        _env_install "$python" || status=$?
        ((status == 2)) || return "$status"
    done
    [[ -n $found ]] || _env_error "no Python >= 3.11 with venv and ensurepip among: ${candidates[*]};" \
        "install one (on Debian also its -venv package) or set PYTHON to one" || return 1
    _env_error "no CPU build of $(_env_torch) for:$found; point PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL at PyTorch's CPU" \
        "wheels, or use Python 3.11 (the default one is a CUDA build of gigabytes)"
}

_env_check_disk() {
    local need=5 free
    [[ $LRPO_DEVICE == cpu ]] || need=15
    free="$(df -Pk "$_ENV_ROOT" | awk 'NR == 2 { print int($4 / 1048576) }')"
    ((free >= need)) || _env_error "$free GB free in $_ENV_ROOT, but .venv needs $need; free some space"
}

_env_torch() { grep '^torch==' "$_ENV_ROOT/scripts/env/cpu.txt"; }

# Returns 2 if the installation failed in a way that another interpreter may avoid.
_env_install() {
    local python="$1" lists="$_ENV_ROOT/scripts/env" status
    echo "env: building .venv for the $LRPO_DEVICE with $python, minutes; log: .venv/install.log" >&2
    rm -f "$_ENV_STAMP"
    "$python" -m venv --clear "$_ENV_VENV" || _env_error "$python -m venv failed; set PYTHON to another one" || return 1
    _env_pip install -r "$lists/pip.txt" || return 1
    if [[ $LRPO_DEVICE == cpu ]]; then
        status=0
        _env_offers_cpu_torch || status=$?
        ((status == 0)) || return "$status"
    fi
    _env_pip install -r "$lists/common.txt" -r "$lists/research.txt" -r "$lists/dev.txt" -r "$lists/$LRPO_DEVICE.txt" || return 1
    _env_pip install --no-deps -r "$lists/$LRPO_DEVICE-no-deps.txt" || return 1
    _env_fingerprint "$(_env_version "$_ENV_VENV/bin/python")" >"$_ENV_STAMP"
}

# Checks, before anything is downloaded, that pip would install a CPU build of torch: 0 if so, 2 if not. Only on Linux for
# x86-64 is the default build the one for CUDA.
_env_offers_cpu_torch() {
    local report
    [[ $(uname -sm) == "Linux x86_64" ]] || return 0
    report="$(_env_pip install --dry-run --no-deps --ignore-installed --quiet --report - "$(_env_torch)")" || return $?
    "$_ENV_VENV/bin/python" -ISc '
import json, sys
sys.exit(0 if "+cpu" in json.load(sys.stdin)["install"][0]["metadata"]["version"] else 2)' <<<"$report"
}

# Runs pip and appends its output to the log; the output of `--report -` goes to standard output instead. Returns 2 if a dry run
# finds no version for this Python.
_env_pip() {
    local status=0 before
    touch "$_ENV_LOG"
    before="$(wc -c <"$_ENV_LOG")"
    if [[ " $* " == *" --report "* ]]; then
        "$_ENV_VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@" 2>>"$_ENV_LOG" || status=$?
    else
        "$_ENV_VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@" >>"$_ENV_LOG" 2>&1 || status=$?
    fi
    ((status != 0)) || return 0
    local output
    output="$(tail -c "+$((before + 1))" "$_ENV_LOG")"
    if [[ $output == *"Retrying (Retry("* || $output == *"ConnectionError"* ]]; then
        tail -n 5 "$_ENV_LOG" >&2
        _env_error "pip reaches no package index; check the network, the proxy or PIP_INDEX_URL, then run this again"
    elif [[ $* == *--dry-run* && $output == *"No matching distribution"* ]]; then
        return 2
    else
        tail -n 5 "$_ENV_LOG" >&2
        _env_error "pip failed; see .venv/install.log, then run this again"
    fi
}
