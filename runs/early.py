"""Ctrl-C while the libraries of a command are imported: one line and status 130. Commands import it first."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def stop(number: int, frame: Any) -> None:
    """End at once: an exception amid an import would come out of whatever library is being loaded."""
    if os.environ.get("LOCAL_RANK", "0") == "0" and "DIGER_PROCESSES" not in os.environ:  # else the run script says it
        os.write(2, b"stopped by SIGINT; the same command begins again\n")
    os._exit(128 + number)


started = Path(sys.argv[0]).resolve().parent in (ROOT, ROOT / "scripts")
if started and callable(signal.getsignal(signal.SIGINT)):  # not ignored, as under nohup
    signal.signal(signal.SIGINT, stop)  # until utils.problems_exit_2
