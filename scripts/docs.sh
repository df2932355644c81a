#!/usr/bin/env bash
# The documentation as a site: bash scripts/docs.sh build (warnings are errors, into site/html) | serve (and shows it)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case "${1:-build}" in
  build | serve) ;;
  *)
    echo "usage: bash scripts/docs.sh build | serve" >&2
    exit 2
    ;;
esac
# shellcheck source=scripts/setup.sh
source "$here/scripts/setup.sh" docs
cd "$here"
rm -rf site
"$PY" scripts/docs_pages.py site/source
"$PY" -m sphinx -W --keep-going -q -c docs site/source site/html
if [ "${1:-build}" = serve ]; then
  echo "http://127.0.0.1:8001/ (Ctrl-C ends it)"
  "$PY" -m http.server --bind 127.0.0.1 --directory site/html 8001
fi
