#!/usr/bin/env bash
# Everything that reads the code and the pages without running them.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/setup.sh
source "$here/scripts/setup.sh" test
cd "$here"
"$PY" -m ruff check .
"$PY" -m mypy .
"$(dirname "$PY")/shellcheck" -x run_*.sh scripts/*.sh .ci/run
bash scripts/docs.sh build
