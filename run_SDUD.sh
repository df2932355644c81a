#!/usr/bin/env bash
# DIGER with SDUD, from data to measured recommendations:
#   bash run_SDUD.sh [data set] [--key=value ...]      (NPROC=2 for two processes; --help for all options)
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh has no pipefail
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")") # of the file itself, not of a link to it
# shellcheck source=scripts/setup.sh
source "$here/scripts/setup.sh" run
exec "$PY" "$here/scripts/run.py" sdud "$@"
