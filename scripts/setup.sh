# shellcheck shell=bash
# Sourced by the scripts: sets PY to a Python that can run the code, making .venv if need be.
#   source scripts/setup.sh run|test|docs

# Threads that spin long starve each other on a busy machine, threads that never spin are slow on small tensors.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usable() { # usable PYTHON run|test|docs: has the packages, torch not older than 2.6?
  "$1" - "$2" >/dev/null 2>&1 <<'PYTHON'
import sys
from importlib.metadata import version
from importlib.util import find_spec
need = "torch accelerate transformers yaml numpy pyarrow faiss sklearn scipy tqdm colorama".split()
need += {"test": ["pytest", "xdist", "pytest_timeout", "hypothesis", "polars", "sentence_transformers"],
         "docs": ["polars", "sphinx", "myst_parser", "furo"]}.get(sys.argv[1], [])
old = tuple(map(int, version("torch").split("+")[0].split(".")[:2])) < (2, 6)
sys.exit(sys.version_info < (3, 11) or old or any(find_spec(n) is None for n in need))
PYTHON
}

setup() {
  local kind=$1 file=requirements.txt active
  case $kind in test) file=requirements-dev.txt ;; docs) file=requirements-docs.txt ;; esac
  active=$(command -v python3 || command -v python || true)
  if [ -n "$active" ] && usable "$active" "$kind"; then
    PY=$active
    return
  fi
  PY=$root/.venv/bin/python
  local stamp=$root/.venv/.complete-$kind wanted
  wanted=$(cat "$root/requirements.txt" "$root/$file" | cksum)
  if [ -x "$PY" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  if [ -z "$active" ]; then
    echo "error: no python3 found; install Python 3.11 or newer" >&2
    exit 2
  fi
  echo "setting up .venv (once; some minutes) ..."
  "$active" -m venv "$root/.venv" || exit 2
  if ! "$PY" -m pip install --quiet --disable-pip-version-check -r "$root/$file" 2>"$root/.venv/pip.log"; then
    tail -n 5 "$root/.venv/pip.log" >&2
    echo "error: the packages of $file could not be installed; the whole log: .venv/pip.log" >&2
    exit 2
  fi
  echo "$wanted" >"$stamp"
}

# busy CORES LOADAVG STAT SECONDS: does other work hold the cores? Prints why: a load above their number, or time that
# the host gave to other machines while it was watched. Two threads that wait for each other are then slower than one.
busy() {
  local load before after
  load=$(cut -d ' ' -f 1 "$2" 2>/dev/null) || return 1
  if awk -v load="$load" -v cores="$1" 'BEGIN { exit !(load > cores) }'; then
    echo "load $load on $1 cores"
    return
  fi
  before=$(head -n 1 "$3" 2>/dev/null) || return 1
  sleep "$4"
  after=$(head -n 1 "$3" 2>/dev/null) || return 1
  # cpu user nice system idle iowait irq softirq steal ...
  echo "$before $after" | awk '{
    half = NF / 2
    for (i = 2; i <= 9 && i <= half; i++) total += $(half + i) - $i
    share = total > 0 && half >= 9 ? ($(half + 9) - $9) / total : 0
    if (share > 0.05) { printf "%.0f %% of the time stolen by the host\n", 100 * share; found = 1 }
    exit !found
  }'
}

threads() {
  local cores why
  cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
  if [ -n "${OMP_NUM_THREADS:-}" ] || [ "$cores" -lt 2 ]; then
    return 0 # a person has chosen, or there is nothing to choose
  fi
  if why=$(busy "$cores" "${DIGER_LOADAVG:-/proc/loadavg}" "${DIGER_STAT:-/proc/stat}" 0.3); then
    export OMP_NUM_THREADS=1
    echo "note: other work holds the cores ($why): one thread; set OMP_NUM_THREADS to choose" >&2
  fi
}

setup "$1"
if [ "$1" = run ]; then
  threads
fi
