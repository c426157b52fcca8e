#!/usr/bin/env bash
# Makes the keys that any address beyond loopback needs: scripts/make_keys.sh DIR
# The learner and the reward process need all of DIR. Actors need DIR/clients, and without run.rendezvous DIR/server.key.
# Every process finds DIR in the variable LRPO_KEYS.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dir="${1:?usage: make_keys.sh DIR}"
if [[ -e "$dir/server.key" && -e "$dir/clients/actor.key_secret" ]]; then
    echo "error: $dir has keys already; choose another directory" >&2
    exit 1
elif [[ -e "$dir/server.key" ]]; then
    echo "error: the keys in $dir are incomplete: remove its server.key, server.key_secret and clients" >&2
    exit 1
fi
source "$root/scripts/env/env.sh"
require_env || exit 1
umask 077
mkdir -p "$dir/clients"
new="$(mktemp -d "$dir/new.XXXXXX")"
trap 'rm -rf "$new"' EXIT
"$LRPO_PYTHON" - "$new" <<'PYTHON'
import sys
from zmq.auth import create_certificates

for name in ("server", "actor"):
    create_certificates(sys.argv[1], name)
PYTHON
mv "$new"/actor.* "$dir/clients"
mv "$new/server.key_secret" "$new/server.key" "$dir" # server.key last: it says that all are there
printf 'export LRPO_KEYS=%q\n' "$(realpath "$dir")"
