#!/usr/bin/env bash
# What one GPU does, in at most twelve minutes: one JSON file and a table.
#   bash scripts/gpu.sh DIR [OUT]             DIR holds beauty/, OUT is results/gpu unless said
#   bash scripts/gpu.sh --dry_run [OUT]       the same steps on the demo, small, on whatever is there
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/setup.sh
source "$here/setup.sh" test
exec "$PY" "$here/gpu.py" "$@"
