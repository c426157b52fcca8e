#!/usr/bin/env bash
# Makes the keys that any address beyond loopback needs: scripts/make_keys.sh DIR
# The learner and the reward process need all of DIR. Actors need DIR/clients, and without run.rendezvous DIR/server.key.
# Every process finds DIR in the variable LRPO_KEYS.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dir="${1:?usage: make_keys.sh DIR}"
[[ ! -e "$dir/server.key" ]] || { echo "error: $dir has keys already; choose another directory" >&2; exit 1; }
source "$root/scripts/env/env.sh"
require_env || exit 1
umask 077
mkdir -p "$dir/clients"
"$LRPO_PYTHON" - "$dir" <<'PYTHON'
import sys
from zmq.auth import create_certificates

create_certificates(sys.argv[1], "server")
create_certificates(f"{sys.argv[1]}/clients", "actor")
PYTHON
printf 'export LRPO_KEYS=%q\n' "$(realpath "$dir")"
