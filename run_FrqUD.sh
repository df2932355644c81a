#!/usr/bin/env bash
# DIGER with FrqUD, from data to measured recommendations:
#   bash run_FrqUD.sh [data set] [--key=value ...]      (NPROC=2 for two processes; --help for all options)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/setup.sh
source "$here/scripts/setup.sh" run
exec "$PY" "$here/scripts/run.py" frqud "$@"
