#!/usr/bin/env bash
# Set up and run the default tests, on two cores; arguments go to pytest (bash scripts/test.sh -m slow).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/setup.sh
source "$here/scripts/setup.sh" test
cd "$here"
exec "$PY" -m pytest -n 2 --dist worksteal "$@"
