# Sourced by the other scripts. There are two environments, side by side: .venv-cpu and .venv-gpu.
#
#   require_env || exit 1   for every command: refuses with one line if the device's environment is missing or out of date
#   ensure_env || exit 1    for setup.sh, demo.sh and test.sh: builds it from scripts/env/*.txt in that case
#
# Both then export LRPO_PYTHON, LRPO_DEVICE and the settings that every process needs, and in LRPO_ENV_SET the names of those
# variables that were set here and not by the user, as they may not suit another host. Two variables change what they do:
#
#   PYTHON=/path/to/python   the interpreter to build with; by default the first suitable one of python3.11 ... python3
#   LRPO_DEVICE=cpu|gpu      the device; by default gpu where nvidia-smi lists one, which CUDA_VISIBLE_DEVICES demands
# shellcheck shell=bash

_ENV_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
_ENV_DRIVER=580 _ENV_CAPABILITY=7.5 # what CUDA 13 needs, for which torch is built unless an index says otherwise

require_env() {
    _env_find_device || return 1
    _env_is_current || _env_refuse || return 1
    _env_use
}

ensure_env() {
    _env_find_device || return 1
    _env_is_current || _env_build_alone _env_build || return 1
    _env_use
}

# Installs what the lists say into an environment that is out of date, instead of making it anew.
update_env() {
    _env_find_device || return 1
    _env_is_current || _env_build_alone _env_update || return 1
    _env_use
}

_env_error() {
    echo "error: $*" >&2
    return 1
}

_env_find_device() {
    if [[ -z ${LRPO_DEVICE:-} ]]; then
        local found=cpu
        if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then found=gpu; fi
        # A process that was given a GPU must not begin on the CPU because the GPU is broken.
        [[ $found == gpu || -z ${CUDA_VISIBLE_DEVICES:-} || $CUDA_VISIBLE_DEVICES =~ ^(-1|NoDevFiles) ]] ||
            _env_error "CUDA_VISIBLE_DEVICES is $CUDA_VISIBLE_DEVICES, and nvidia-smi lists no GPU; mend the driver, unset" \
                "CUDA_VISIBLE_DEVICES, or set LRPO_DEVICE=cpu" || return 1
        _env_default LRPO_DEVICE "$found"
    fi
    [[ $LRPO_DEVICE == cpu || $LRPO_DEVICE == gpu ]] || _env_error "LRPO_DEVICE is '$LRPO_DEVICE'; set it to cpu or gpu" || return 1
    _ENV_NAME=".venv-$LRPO_DEVICE"
    _ENV_VENV="$_ENV_ROOT/$_ENV_NAME"
    _ENV_LOG="$_ENV_VENV/install.log"
    _ENV_STAMP="$_ENV_VENV/complete" # written last: an environment without it is not finished
}

_env_use() {
    # Held by every process that is started from here, so that nobody rebuilds the environment under it.
    exec 8<"$_ENV_STAMP"
    if command -v flock >/dev/null; then flock -s -n 8 || true; fi
    export LRPO_PYTHON="$_ENV_VENV/bin/python" LRPO_DEVICE
    export TOKENIZERS_PARALLELISM=false TQDM_DISABLE=1
    if [[ $LRPO_DEVICE == cpu ]]; then
        # The CPU build of torch cannot use a GPU that is there. Two OpenMP threads on a busy machine cost five to ten times
        # the time of one.
        unset CUDA_VISIBLE_DEVICES
        _env_default CUDA_VISIBLE_DEVICES ""
        _env_default OMP_NUM_THREADS 1
        _env_default HF_HUB_OFFLINE 1
    fi
}

# Exports the variable $1 as $2 unless the user has set it. A script that another one has started knows by LRPO_ENV_SET.
_env_default() {
    [[ -z ${!1:-} ]] || return 0
    export "$1=$2"
    [[ " ${LRPO_ENV_SET:-} " == *" $1 "* ]] || export LRPO_ENV_SET="${LRPO_ENV_SET:+$LRPO_ENV_SET }$1"
}

_env_refuse() {
    local other=gpu state="is missing" instead=""
    [[ $LRPO_DEVICE == cpu ]] || other=cpu
    [[ ! -e $_ENV_STAMP ]] || state="is not what scripts/env/*.txt say, or was made with another Python"
    [[ ! -e $_ENV_ROOT/.venv-$other/complete ]] || instead=", or set LRPO_DEVICE=$other to use .venv-$other"
    _env_error "$_ENV_NAME $state: run LRPO_DEVICE=$LRPO_DEVICE ./scripts/setup.sh$instead"
}

_env_version() { "$1" -ISc 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

_env_lists() {
    local name
    for name in pip common research dev "$LRPO_DEVICE" "$LRPO_DEVICE-no-deps"; do
        echo "$_ENV_ROOT/scripts/env/$name.txt"
    done
}

# What a complete environment was made from: device, Python version ($1), checksum of the device's lists.
_env_fingerprint() {
    local files
    mapfile -t files < <(_env_lists)
    echo "$LRPO_DEVICE $1 $(cat "${files[@]}" | cksum)"
}

_env_is_current() {
    local version
    [[ -f $_ENV_STAMP && -x $_ENV_VENV/bin/python ]] || return 1
    version="$(_env_version "$_ENV_VENV/bin/python")" || return 1
    [[ -z ${PYTHON:-} || $(_env_version "$PYTHON") == "$version" ]] || return 1
    [[ $(<"$_ENV_STAMP") == "$(_env_fingerprint "$version")" ]]
}

# If several processes start together, one of them runs the builder $1 and the others wait for it. No running process may
# be using the environment.
_env_build_alone() {
    mkdir -p "$_ENV_ROOT/.cache" || return 1
    (
        if command -v flock >/dev/null && ! flock -n 9; then
            echo "env: waiting for another process that builds $_ENV_NAME" >&2
            flock 9
        fi
        _env_is_current || { _env_is_idle && "$1"; }
    ) 9>"$_ENV_ROOT/.cache/env-$LRPO_DEVICE.lock"
}

_env_is_idle() {
    [[ -e $_ENV_STAMP ]] && command -v flock >/dev/null || return 0
    flock -n "$_ENV_STAMP" true || _env_error "$_ENV_NAME is out of date, and running processes use it;" \
        "run this again when they have ended"
}

_env_build() {
    local python status found="" candidates=(python3.11 python3.12 python3.13 python3)
    # Building clears the directory. Through a link it would clear a directory that belongs to another checkout.
    [[ ! -L $_ENV_VENV ]] || _env_error "$_ENV_VENV is a link to an environment that is not what scripts/env/*.txt say;" \
        "remove the link to build one here, or bring the environment up to date where it is" || return 1
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    _env_check_machine || return 1
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

# Checks before anything is downloaded what would otherwise fail after gigabytes: disk, C library, driver.
_env_check_machine() {
    local need=5 free glibc=2.28 what="PyTorch's wheel" found driver capability
    [[ $LRPO_DEVICE == cpu ]] || need=15 glibc=2.34 what="SGLang's wheel"
    free="$(df -Pk "$_ENV_ROOT" | awk 'NR == 2 { print int($4 / 1048576) }')"
    ((free >= need)) || _env_error "$free GB free in $_ENV_ROOT, but $_ENV_NAME needs $need; free some space" || return 1
    if [[ $(uname -s) == Linux ]]; then
        found="$(getconf GNU_LIBC_VERSION 2>/dev/null)" || found="no glibc"
        _env_at_least "${found#glibc }" "$glibc" || _env_error "$what needs glibc $glibc or newer, and this system has" \
            "$found; use a newer distribution, or the image that scripts/deploy/Dockerfile makes" || return 1
    fi
    [[ $LRPO_DEVICE == gpu ]] || return 0
    if ! command -v nvidia-smi >/dev/null; then
        echo "env: no nvidia-smi here, as in the build of an image: the driver is not checked" >&2
        return 0
    fi
    read -r driver capability < <(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null | tr -d ,) ||
        _env_error "nvidia-smi lists no GPU; mend the driver, or set LRPO_DEVICE=cpu" || return 1
    _env_at_least "$driver" "$_ENV_DRIVER" || _env_error "the NVIDIA driver is $driver, and torch for CUDA 13 needs" \
        "$_ENV_DRIVER or newer; update the driver, or set LRPO_DEVICE=cpu" || return 1
    _env_at_least "$capability" "$_ENV_CAPABILITY" || _env_error "the GPU has compute capability $capability, and CUDA 13" \
        "needs $_ENV_CAPABILITY or newer (Turing); use another GPU, or set LRPO_DEVICE=cpu"
}

# Whether version $1 is $2 or newer: the first two numbers are compared.
_env_at_least() {
    [[ $1 =~ ^([0-9]+)(\.([0-9]+))? ]] || return 1
    local major="${BASH_REMATCH[1]}" minor="${BASH_REMATCH[3]:-0}" least="${2%%.*}" rest="${2#*.}"
    [[ $2 == *.* ]] || rest=0
    ((major > least || (major == least && minor >= rest)))
}

_env_torch() { grep '^torch==' "$_ENV_ROOT/scripts/env/cpu.txt"; }

# Returns 2 if the installation failed in a way that another interpreter may avoid.
_env_install() {
    local python="$1" status
    echo "env: building $_ENV_NAME with $python, minutes; log: $_ENV_NAME/install.log" >&2
    rm -f "$_ENV_STAMP"
    "$python" -m venv --clear "$_ENV_VENV" || _env_error "$python -m venv failed; set PYTHON to another one" || return 1
    _env_pip install -r "$_ENV_ROOT/scripts/env/pip.txt" || return 1
    if [[ $LRPO_DEVICE == cpu ]]; then
        status=0
        _env_offers_cpu_torch || status=$?
        ((status == 0)) || return "$status"
    fi
    _env_install_lists
}

_env_update() {
    [[ ! -L $_ENV_VENV ]] || _env_error "$_ENV_VENV is a link; bring the environment up to date where it is" || return 1
    [[ -x $_ENV_VENV/bin/python ]] || _env_error "$_ENV_NAME is missing, so there is nothing to update; leave --update out" ||
        return 1
    _env_check_machine || return 1
    echo "env: updating $_ENV_NAME; log: $_ENV_NAME/install.log" >&2
    rm -f "$_ENV_STAMP"
    _env_pip install -r "$_ENV_ROOT/scripts/env/pip.txt" && _env_install_lists
}

# Installs the lists and, so that `lrpo` is a command, this directory itself; then writes the stamp.
_env_install_lists() {
    local lists="$_ENV_ROOT/scripts/env"
    _env_pip install -r "$lists/common.txt" -r "$lists/research.txt" -r "$lists/dev.txt" -r "$lists/$LRPO_DEVICE.txt" || return 1
    _env_pip install --no-deps -r "$lists/$LRPO_DEVICE-no-deps.txt" || return 1
    _env_pip install --no-deps --no-build-isolation -e "$_ENV_ROOT" || return 1
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
    elif [[ $output == *ERROR*cuda-tile* || $output == *"Failed to build"*cuda-tile* ]]; then
        tail -n 5 "$_ENV_LOG" >&2
        _env_error "pip cannot install cuda-tile, which is on NVIDIA's own package index alone; add that index as" \
            "PIP_EXTRA_INDEX_URL, then run this again"
    elif [[ $* == *--dry-run* && $output == *"No matching distribution"* ]]; then
        return 2
    else
        tail -n 5 "$_ENV_LOG" >&2
        _env_error "pip failed; see $_ENV_NAME/install.log, then run this again"
    fi
}
