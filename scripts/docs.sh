#!/usr/bin/env bash
# The documentation as a site: bash scripts/docs.sh build (strict, into site/) | serve (on this machine, reloads)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/setup.sh
source "$here/scripts/setup.sh" docs
cd "$here"
case "${1:-build}" in
  build) exec "$PY" -m mkdocs build --strict --quiet ;;
  serve) exec "$PY" -m mkdocs serve ;;
  *)
    echo "usage: bash scripts/docs.sh build | serve" >&2
    exit 2
    ;;
esac
