"""The same as scripts/pretrain.py, under the name that the published program gives it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runs import guard
from scripts.pretrain import run

if __name__ == "__main__":
    guard.command(run)
