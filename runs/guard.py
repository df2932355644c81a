"""What keeps a run whole: one writer a folder, an orderly stop, processes that end together."""

import contextlib
import ctypes
import errno
import logging
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from utils import Problem, Stopped, keep_freed_memory, log, make_folder, one_line, problems_exit_2

# ---------------------------------------------------------------- one writer

_held: list[IO[str]] = []  # an open file keeps its lock, the kernel drops it when the process ends


def lock(folder: Path) -> None:
    """Make this process the only writer in a folder, new or old, until it ends; Problem when there is another.

    A record lock, which forked data workers do not inherit: it never outlives its owner.
    """
    make_folder(folder)
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        f = (folder / ".lock").open("a+")
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        f.truncate(0)
        f.write(str(os.getpid()))
        f.flush()
    except OSError as e:
        if e.errno in (errno.EACCES, errno.EAGAIN) and (folder / ".lock").is_file():
            owner = (folder / ".lock").read_text() or "?"
            raise Problem(f"{folder}: process {owner} is writing here; wait for it or stop it first") from None
        if e.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
            log.warning(f"{folder}: this file system has no locks; do not start a second run in it")
            return
        raise Problem(f"{folder}: cannot be written ({e.strerror}); choose another folder") from None
    _held.append(f)


# ---------------------------------------------------------------- an orderly stop

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_asked: list[int] = []  # the signal that asked this process to stop, if one did


@contextlib.contextmanager
def orderly_stop(advice: str | None) -> Iterator[None]:
    """Within, SIGTERM and SIGINT only ask: the work ends in `Stopped` at a place of its choice.

    advice: how to go on, None on a process that stays silent. A second SIGINT does not wait. Signals belong to
    the main thread; in any other this does nothing.
    """
    _asked.clear()
    try:
        before = {number: signal.signal(number, _ask) for number in SIGNALS}
    except ValueError:
        before = {}
    try:
        yield
    except (Problem, Stopped) as e:
        if isinstance(e, Stopped):
            e.advice = advice
        raise
    except Exception:
        if _asked:  # another process stopped first and left this one waiting
            raise Stopped(_asked[0], advice) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


def _ask(number: int, frame: Any) -> None:
    if _asked and number == signal.SIGINT:
        raise KeyboardInterrupt
    _asked.append(number)


def asked() -> int:
    """The signal that asked for a stop, 0 without one."""
    return _asked[0] if _asked else 0


def stop_if_asked() -> None:
    """Stop here, where nothing is lost."""
    if _asked:
        raise Stopped(_asked[0])


# ---------------------------------------------------------------- processes that end together


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send a signal to this process when its parent dies (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(number))  # PR_SET_PDEATHSIG


def command(run: Callable[[list[str]], object]) -> NoReturn:
    """Run a command to the end of its process, which may be one of a launcher's."""
    in_group = "TORCHELASTIC_RUN_ID" in os.environ
    if in_group:  # in a session of its own, where nobody else would end it
        die_with_parent()
    keep_freed_memory()
    with problems_exit_2(), others_there():
        run(sys.argv[1:])
    if in_group:  # all is written and said; a thread of the group that is not through may abort the interpreter's end
        logging.shutdown()
        os._exit(0)
    raise SystemExit(0)


LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out waiting", "socket timeout")


@contextlib.contextmanager
def others_there() -> Iterator[None]:
    """Within, a process that waits for another one which has gone ends in one line, said once a machine."""
    try:
        yield
    except RuntimeError as e:  # gloo's; that of other back ends is one, too
        if not isinstance(e, torch.distributed.DistError) and not any(words in str(e).lower() for words in LOST):
            raise
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise SystemExit(2) from None
        raise Problem(
            f"another process of this run has ended or cannot be reached ({one_line(e)}); what was saved is whole: "
            "start all of them again with the same --run_name and --resume=auto"
        ) from None


def run_launcher(command: list[str], advice: str, **environment: str) -> int:
    """Run a launcher to its end, pass a signal on to it once; returns its exit status.

    In a session of its own, so that a key press does not reach it a second time: the launcher would
    take that as an order to drop its workers at once.
    """
    child = subprocess.Popen(
        command, env={**os.environ, **environment}, start_new_session=True,
        preexec_fn=lambda: die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - one system call, no lock taken
    )  # fmt: skip
    told = False
    with orderly_stop(advice):
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.5)
            if asked() and not told:
                child.send_signal(asked())
                told = True
        stop_if_asked()
    return child.returncode


def check_shared(acc: Accelerator, folder: Path, identity: Callable[[], str | None], data: str) -> None:
    """Problem, on all processes, where one does not see the run folder as the first one left it, or has other data.

    identity: what this process reads in the folder; data: hash of the data that it has read.
    """
    if acc.num_processes == 1:
        return
    wanted, wanted_data = broadcast_object_list([identity(), data])
    with fail_together(acc):
        end, where = time.monotonic() + PATIENCE, f"process {acc.process_index} on {platform.node()}"
        while identity() != wanted and time.monotonic() < end:  # a network's file system may be late
            time.sleep(0.2)
        if identity() != wanted:
            raise Problem(
                f"output_dir: {where} does not see {folder.resolve()} as the first process wrote it; name a "
                "folder that all machines share"
            )
        if data != wanted_data:
            raise Problem(f"data_path: {where} has other data than the first process; copy the same files everywhere")


PATIENCE = 10.0  # seconds until a file must be seen by all machines


@contextlib.contextmanager
def fail_together(acc: Accelerator) -> Iterator[None]:
    """A Problem of one process ends them all: nobody waits for one that has gone."""
    mine: list[str | None] = [None]
    try:
        yield
    except Problem as e:
        mine = [str(e)]
    found = [text for text in gather_object(mine) if text is not None]
    if found and acc.is_main_process:
        raise Problem(found[0])
    if found:
        raise SystemExit(2)  # the main process says it
