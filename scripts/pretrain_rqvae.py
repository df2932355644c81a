"""The same as scripts/pretrain.py, under the name that the published program gives it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.pretrain import run
from utils import problems_exit_2

if __name__ == "__main__":
    with problems_exit_2():
        run(sys.argv[1:])
