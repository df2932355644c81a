"""accelerate's launcher without its tracebacks: what ends a training is told by those who train, in one line.

python scripts/launcher.py [options of `accelerate launch`] main.py ...        called by scripts/run.py
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def launch(argv: list[str]) -> int:
    """Run the workers to their end; 128 + signal where one ended this process, 1 where a worker failed, else 0."""
    try:
        launch_command(launch_command_parser().parse_args(argv))
    except SignalException as e:  # it has passed the signal on and waited for its workers
        return 128 + e.sigval
    except ChildFailedError:
        return 1
    return 0


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # of this process alone; the workers are others
    sys.exit(launch(sys.argv[1:]))
