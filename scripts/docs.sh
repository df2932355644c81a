#!/usr/bin/env bash
# The documentation as a site: bash scripts/docs.sh build (warnings are errors, into site/html) | serve (and shows it)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/setup.sh
source "$here/scripts/setup.sh" docs
cd "$here"
case "${1:-build}" in
  build | serve) ;;
  *)
    echo "usage: bash scripts/docs.sh build | serve" >&2
    exit 2
    ;;
esac
"$PY" scripts/docs_pages.py site/source
"$PY" -m sphinx -W --keep-going -q -c docs site/source site/html
if [ "${1:-build}" = serve ]; then
  "$PY" -m http.server --bind 127.0.0.1 --directory site/html 8001
fi
