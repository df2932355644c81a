"""Small things that every part needs: clear errors, atomic files, logging, hashes."""

import contextlib
import ctypes
import difflib
import errno
import functools
import hashlib
import io
import json
import logging
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import colorama
import numpy as np
import torch

log = logging.getLogger("diger")


class Problem(Exception):
    """Something the user can mend: one line that names the file, row or key and the remedy."""

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:  # whatever it quotes, its beginning says where and its end what to do
            text = f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 4 :]}"
        super().__init__(text)


LONGEST = 4000  # characters of a Problem


class Contradiction(Problem):
    """Options that cannot be had together; each of `ways` is options and values that would mend it.

    idle: the option that was typed has no effect here, so that it may be dropped as well.
    """

    def __init__(self, text: str, *ways: Mapping[str, Any], idle: bool = False) -> None:
        self.reason, self.ways, self.idle = text, ways, idle
        told = " or ".join(" ".join(as_word(key, value) for key, value in way.items()) for way in ways)
        drop = (", or drop it" if told else "; drop it") if idle else ""
        super().__init__((f"{text}; add {told}" if told else text) + drop)


def as_word(key: str, value: Any) -> str:
    """--key=value, as a command line takes it."""
    if isinstance(value, list):
        told = ",".join(map(str, value))
        return f"--{key}={told}" if len(value) > 1 else f"--{key}=[{told}]"
    return f"--{key}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"


class Unwritable(Problem):
    """A file could not be written, for a reason that lies in the file system."""


def shortened(text: object, most: int = 200) -> str:
    """Text for a message: what a file or a command line holds may be megabytes long."""
    found = str(text)
    return found if len(found) <= most else f"{found[:most]}..."


def quoted(text: object) -> str:
    """The same in quotes, or as Python writes what is no text."""
    return repr(shortened(text)) if isinstance(text, str) else shown(text)


def nearest(word: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """The known word that one most resembles; None where none does, or where looking would take seconds."""
    quick = len(word) < 200 and len(known) < 200_000
    return next(iter(difflib.get_close_matches(word, known, 1, cutoff)), None) if quick else None


def whole_number(text: str) -> int | None:
    """The number, from 0, that a word of at most 15 digits spells; None for anything else."""
    return int(text) if text.isdecimal() and len(text) <= 15 else None


def seeds_of(text: str) -> list[str]:
    """The distinct seeds of `--seeds`, in order, as words of digits; Problem for anything else."""
    words = list(dict.fromkeys(text.split(",")))
    if bad := [word for word in words if whole_number(word) is None]:
        raise Problem(f"--seeds: expected whole numbers separated by commas, got {quoted(bad[0])}")
    return words


def whole_text(text: str) -> str:
    """A text that can be written: half of a surrogate pair, as JSON may hold one, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def shown(value: Any, most: int = 200) -> str:
    """A value for a message."""
    return shortened(repr(value), most)


class Stopped(Exception):
    """Ended by a signal, in order; `advice` says how to go on, None on processes that stay silent."""

    def __init__(self, number: int, advice: str | None = None) -> None:
        super().__init__(number)
        self.number, self.advice = number, advice


@contextlib.contextmanager
def problems_exit_2() -> Iterator[None]:
    """Run a command: a Problem is one line on stderr and exit status 2, a stop by a signal 128 + its number.

    What was printed has been delivered when it ends well. A reader that went away (| head) ends it as SIGPIPE would,
    a full device with status 2.
    """
    with contextlib.suppress(ValueError):  # a thread has no signals
        if callable(signal.getsignal(signal.SIGINT)):
            signal.signal(signal.SIGINT, signal.default_int_handler)  # that of runs.early has done its work
    ready_streams()
    commit()
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except Problem as e:
        colorama.just_fix_windows_console()
        text = f"error: {printable(str(e))}"
        print(colored(text, colorama.Fore.RED, sys.stderr), file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except (Stopped, KeyboardInterrupt) as e:
        number = e.number if isinstance(e, Stopped) else signal.SIGINT
        advice = e.advice if isinstance(e, Stopped) else "the same command begins again"
        if advice is not None:
            print(f"stopped by {signal.Signals(number).name}; {advice}", file=sys.stderr, flush=True)
        raise SystemExit(128 + number) from None
    except BrokenPipeError:
        _forget_output()
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT) or e.filename is not None:
            raise
        _forget_output()
        print(f"error: the output cannot be written ({e.strerror}); nothing after it was printed", file=sys.stderr)
        raise SystemExit(2) from None


def as_command(usage: str | None, run: Callable[[list[str]], object]) -> None:
    """Answer --help with a script's docstring, or run it on the command line; a Problem is one line and status 2."""
    with problems_exit_2():
        if {"--help", "-h"} & set(sys.argv):
            print(usage)
        else:
            run(sys.argv[1:])


def ready_streams() -> None:
    """Make stdout and stderr take whatever is printed: closed ones lead nowhere, unknown characters are escaped."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed one would be the next file that is opened
        continue
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - open as long as the process
        with contextlib.suppress(AttributeError, ValueError, OSError):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _forget_output() -> None:
    """What stdout still holds cannot be delivered; without this the interpreter would try again at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text: str, *, keep: str = "") -> str:
    """Text of a file as a terminal may show it: controls, line ends, bidirectional overrides,
    lone surrogates escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def colored(text: str, color: str, stream: IO[str]) -> str:
    return f"{color}{text}{colorama.Style.RESET_ALL}" if stream.isatty() else text


# ---------------------------------------------------------------- files


KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def regular_file(path: str | Path, missing: str = "no such file") -> Path:
    """The path of a regular file that is about to be read; Problem where something else, or nothing, is there.

    A device or a pipe may deliver without end, or make its reader wait without end.
    """
    path = Path(path)
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise Problem(f"{path}: {missing}{_why_missing(str(path))}") from None
    except OSError as e:
        reason = f"not readable ({e.strerror}); name another file or mend its permissions"
        raise Problem(f"{shortened(path)}: {reason}") from None
    if kind != stat.S_IFREG:
        raise Problem(f"{path}: not readable, it is {KINDS.get(kind, 'no file')}; name a regular file")
    return path


def _why_missing(path: str) -> str:
    """What to do about a path that nothing is at, where it has the form of something else."""
    forms = {r"\w{2,}:/": "it is an address, download the file first", r"~": "write $HOME in place of ~",
             r".*\\": "write / between folders, as in data/clicks.csv",
             r".*[*?]": "a pattern names no file here, name the file or the folder"}  # fmt: skip
    return next((f"; {remedy}" for form, remedy in forms.items() if re.match(form, path)), "")


START = 512  # bytes of a file that tell what it is
GZIP, PARQUET, NUMPY, TORCH = "gzip", "a Parquet file", "a NumPy array", "a file of torch.save"
UNPACK, EXPORT = "unpack it and name what it holds", "save it as .csv (UTF-8) or .parquet"
UTF8 = "save it as CSV UTF-8, or convert it: iconv -f {} -t utf-8 FILE"
SIGNS = {  # how files begin that are no text -> what they are, what to do where a text is wanted
    b"\x1f\x8b": (GZIP, "gunzip FILE"),
    b"PAR1": (PARQUET, "rename it to end in .parquet"),
    b"\x93NUMPY": (NUMPY, EXPORT),
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch the file itself: git lfs pull"),
    **dict.fromkeys((b"\xff\xfe\0\0", b"\0\0\xfe\xff"), ("UTF-32", UTF8.format("utf-32"))),
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), ("UTF-16", UTF8.format("utf-16"))),
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF"), ("a picture or sound", EXPORT)),
    **{sign: (f"a {name} archive", UNPACK) for sign, name in (
        (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"7z\xbc\xaf", "7z"), (b"Rar!", "rar"),
        (b"\x04\x22\x4d\x18", "lz4"), (b"\x1f\x9d", "compress"), (b"LZIP", "lzip"), (b"\xff\x06\0\0sNaPpY", "snappy"))},
    **{sign: (f"a file of {name}", EXPORT) for sign, name in (
        (b"\xd0\xcf\x11\xe0", "old Office"), (b"%PDF", "PDF"), (b"ORC", "ORC"), (b"ARROW1", "Arrow (Feather)"),
        (b"FEA1", "Feather"), (b"Obj\x01", "Avro"), (b"SQLite format 3", "SQLite"), (b"\x89HDF", "HDF5"),
        (b"RDX", "R"), (b"{\\rtf", "RTF"))},
}  # fmt: skip


ENOUGH = (b"PAR1",)  # of a word or a number, that are signs with nothing unprintable behind them
PRINTED = bytes([*range(9, 14), *range(32, 127)])  # so that a column called ORCID is no file of ORC


def what_is(start: bytes) -> tuple[str, str] | None:
    """(what a file is, how to make a text of it) by its first START bytes; None where it may be a text."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"PK\x03\x04"):
        inner = {b"[Content_Types]": ("an Excel workbook", EXPORT), b"xl/": ("an Excel workbook", EXPORT),
                 b"oasis.opendocument": ("an OpenDocument file", EXPORT),
                 b"data.pkl": (TORCH, EXPORT), b".npy": ("an .npz archive", EXPORT)}  # fmt: skip
        return next((told for name, told in inner.items() if name in start), ("a zip archive", UNPACK))
    for sign, told in SIGNS.items():
        if start.startswith(sign) and (sign in ENOUGH or not sign.isalnum() or start.translate(None, PRINTED)):
            return told
    if text.startswith((b"<!doctype", b"<html", b"<table", b"<?xml")):
        return "XML" if text.startswith(b"<?xml") else "a web page", "download it again, or save its table as .csv"
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a pickle", EXPORT
    if start[8:9] == b"{" and b"\0" in start[:8]:
        return "a safetensors file", EXPORT
    if start[257:262] == b"ustar":
        return "a tar archive", UNPACK
    zeros = {"utf-16be": start[::2].count(0), "utf-16le": start[1::2].count(0)}  # in every second byte
    coding = max(zeros, key=lambda c: zeros[c])
    if zeros[coding] > max(1, len(start) / 4) and min(zeros.values()) <= len(start) / 20:
        return "UTF-16", UTF8.format(coding)
    return ("no text", EXPORT) if b"\0" in start else None


def first_bytes(path: Path) -> bytes:
    """What tells what a file is; Problem where no regular file is there."""
    with regular_file(path).open("rb") as f:
        return f.read(START)


def kind_of(path: Path) -> str | None:
    """What a file is by its first bytes, as what_is says it; None where it may be a text."""
    return (what_is(first_bytes(path)) or (None,))[0]


def is_file(path: str | Path) -> bool:
    """Is a regular file there? False also for a name that no file can have."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write a file: `path` is the old file or the whole new one."""
    with whole_file(path, len(content)) as f:
        f.write(content)


@contextlib.contextmanager
def whole_file(path: Path, size: int | None = None) -> Iterator[IO[bytes]]:
    """A file to write to, aside; flushed to disk, then renamed: `path` is the old file or the whole new one.

    size: bytes that it will need, where they are known. Makes no folder: one that went away while a command runs is
    not to come back half empty.
    """
    aside, failed = path.with_name(f".{path.name}.{os.getpid()}.part"), None
    try:
        with aside.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        aside.replace(path)
        _flush_folder(path.parent)
    except OSError as e:
        failed = e.strerror or one_line(e)  # a library's own has none
        if not path.parent.is_dir():
            raise Unwritable(f"{path}: cannot be written, the folder {path.parent} is not there (any more)") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    if failed is not None:
        needs = f"it needs {size} bytes, " if size is not None else ""
        raise Unwritable(
            f"{path}: cannot be written ({failed}): {needs}{_free(path.parent)} are free; "
            "make room or choose another folder; what was there before is untouched"
        )


def make_folder(path: Path) -> Path:
    """A folder that is there to write to; Problem when it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise Problem(f"{path}: cannot be written ({e.strerror}); choose another folder") from None
    return path


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, aside; then renamed: `out` is there with all that is in it, or not at all."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            draft = Path(scratch) / out.name  # inside the private folder, so that it gets the usual permissions
            draft.mkdir()
            yield draft
            draft.rename(out)
    except OSError as e:
        raise Unwritable(f"{out}: cannot be written ({e.strerror or e}); nothing is left of it") from None


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Within, no other process is within for the same folder, in which nothing is left; without locks, nothing."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            held.callback(os.close, number := os.open(folder, os.O_RDONLY))
            fcntl.flock(number, fcntl.LOCK_EX)
        yield


def _flush_folder(folder: Path) -> None:
    """A rename outlives a power cut once its folder is on disk; not every file system can be asked."""
    with contextlib.suppress(OSError):
        entry = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)


def _free(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return str(shutil.disk_usage(folder).free)
    return "unknown"


def write_text(path: Path, text: str) -> None:
    write_atomic(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getbuffer())


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """In memory first: so a full disk is told by the bytes it lacks, not by torch's own error."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getbuffer())


def parse_json(text: str) -> Any:
    """A value of JSON; ValueError where it is none, or an object has a key twice, of which Python keeps the last."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {quoted(next(k for k in keys if keys.count(k) > 1))} stands there twice")
    return found


def read_json(path: Path) -> Any:
    if found := what_is(first_bytes(path)):
        raise Problem(f"{path}: not readable as JSON ({found[0]})")
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:  # ValueError: damaged, or not UTF-8
        raise Problem(f"{path}: not readable as JSON ({e})") from None


def read_checkpoint(path: str | Path, allow: tuple[type, ...] = ()) -> dict[str, Any]:
    """Load a checkpoint without executing anything in it (`weights_only=True`).

    `allow` names further harmless classes that the file may hold. Raises Problem when the file is
    missing, truncated, or holds anything but tensors and plain values.
    """
    path = regular_file(path, "no such checkpoint")
    try:
        with torch.serialization.safe_globals(list(allow)):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many kinds for a damaged file
        kind, text = kind_of(path), str(e)
        if held := re.search(r"(?:Unsupported global: GLOBAL|Trying to load unsupported GLOBAL) ([\w.]+)", text):
            raise Problem(
                f"{path}: holds a {held[1]}, which is code that reading would run, so nothing is read; save it again "
                "where it comes from, with tensors, numbers and texts alone"
            ) from None
        if kind not in (TORCH, "a pickle", "a zip archive") and first_bytes(path):
            raise Problem(f"{path}: no checkpoint but {kind or 'another file'}; name a file of torch.save") from None
        raise Problem(
            f"{path}: not a readable checkpoint, perhaps truncated ({one_line(e)[:160]}); use another one or run its "
            "training again"
        ) from None
    if not isinstance(state, dict):
        raise Problem(f"{path}: a checkpoint holds a dictionary, this file a {type(state).__name__}")
    return state


def not_finite(state: Mapping[str, Any]) -> list[str]:
    """Names of the tensors in a state that hold NaN or infinity."""
    numbers = {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    return [str(k) for k, v in numbers.items() if not torch.isfinite(v).all()]


def check_weights(path: str | Path, state: Mapping[str, Any]) -> None:
    """Problem when the weights of a checkpoint cannot rank anything."""
    if bad := not_finite(state):
        what = f"{bad[0]} holds" if len(bad) == 1 else f"{bad[0]} and {len(bad) - 1} more hold"
        raise Problem(
            f"{path}: {what} NaN or infinity, its training diverged; use another checkpoint, or train it "
            "again with lower learning rates"
        )


def load_weights(model: Any, state: Mapping[str, Any]) -> None:
    """Fill a model from a saved state; RuntimeError where it does not fit, as torch's own for other names and sizes."""
    try:
        model.load_state_dict(state)
    except (KeyError, TypeError, AttributeError, IndexError) as e:  # names or values that are none
        raise RuntimeError(f"{type(e).__name__}: {e}") from None


def one_line(error: BaseException) -> str:
    """What a library says of an error, for a message of ours."""
    return shortened(" ".join(str(error).split()), 300)


def fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """Short hash of a model's tensors: equal for equal values, whatever file they come from."""
    h = hashlib.sha256()
    for name in sorted(state):
        h.update(f"{name} {state[name].dtype} {list(state[name].shape)}".encode())
        h.update(state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]


def digest(*parts: object) -> str:
    """Short stable hash of files (Path) and plain values."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with regular_file(part).open("rb") as f:
                while chunk := f.read(1 << 20):
                    h.update(chunk)
        else:
            h.update(json.dumps(part, sort_keys=True, default=str).encode())
        h.update(b"\0")
    return h.hexdigest()[:12]


# ---------------------------------------------------------------- memory


def out_of_memory(e: BaseException) -> bool:
    """Is that what torch says, of a GPU or of the CPU's allocator? Also of a size beyond every memory."""
    said = ("can't allocate memory", "overflow")
    return isinstance(e, torch.OutOfMemoryError | MemoryError) or any(words in str(e) for words in said)


@contextlib.contextmanager
def room_for(what: str, remedy: str) -> Iterator[None]:
    """Within, running out of memory is a Problem that says for what there is no room, and the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e):
            raise
        raise Problem(f"out of memory: no room for {what}; {remedy}") from None


# ---------------------------------------------------------------- log


class _Console(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = printable(record.getMessage(), keep="\n")
        if record.levelno >= logging.WARNING:
            return colored(f"warning: {text}", colorama.Fore.YELLOW, sys.stdout)
        return text


def log_to(path: Path | None, *, main: bool) -> None:
    """Send the log to stdout and, if given, to a file; only the main process speaks."""
    for handler in log.handlers[:]:
        log.removeHandler(handler)
        if isinstance(handler, logging.FileHandler):
            handler.close()
    log.propagate = False
    logging.raiseExceptions = False  # a reader that went away (| head) is no reason for a traceback a line
    log.setLevel(logging.INFO if main else logging.ERROR)
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(_Console())
    log.addHandler(console)
    if path is not None and main:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        except OSError as e:
            raise Problem(f"{path}: the log cannot be written ({e.strerror}); choose another log_dir") from None
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(file)


def now() -> str:
    """Date and time for a name, to the millisecond, so that two runs of one second differ: 20260131-235959-042."""
    nanoseconds = time.time_ns()
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(nanoseconds // 10**9)) + f"-{nanoseconds // 10**6 % 1000:03d}"


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of handing them back page by page: 10-15 % on CPU."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


@functools.cache
def commit() -> str | None:
    """The commit of this code, asked once: a command asks as it begins, whatever is committed while it runs."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(git, check=False, capture_output=True, text=True, timeout=10).stdout.strip() or None
    return None


def environment() -> dict[str, Any]:
    """What a reader needs to repeat a run: versions, machine, commit."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": commit(),
    }


def peak_memory_gb(device: torch.device) -> float:
    """Most memory held so far: on the GPU when there is one, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held when it started this process
        held = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if held:
            return int(held[1]) * 1024 / 1e9
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
