"""Serve a trained model over HTTP, with one page to look at it.

  python scripts/serve.py myckpt/.../best_model.pth [--host 127.0.0.1] [--port 8000] [--max_k 100] [--max_history 1000]
                          [--max_body 65536] [--timeout 10] [--key=value ...]

  curl -s localhost:8000/recommend -H 'content-type: application/json' -d '{"history": ["i3", "i17"], "k": 5}'
  curl -s 'localhost:8000/similar?item=i3&k=5'        /items?query=TEXT  /health  /metrics

Needs fastapi and uvicorn (pip install fastapi uvicorn). Options of the model that may differ from its training are
given as --num_beams=50, --mask_seen=true. It has no passwords: whoever reaches its address may ask it.
"""

import importlib.util
import logging
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import settings
from serve.loaded import load
from utils import Problem, as_command, log, log_to, quoted

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LIMITS = {"max_k": "k", "max_history": "history", "max_body": "body", "timeout": "seconds"}  # option -> of Limits


def arguments(argv: list[str]) -> tuple[str, dict[str, str], list[str]]:
    """(checkpoint, this command's options, the model's); Problem where they make no sense."""
    given, words = settings.split_off(argv, ["host", "port", *LIMITS])
    paths = [w for w in words if not w.startswith("--")]
    if len(paths) != 1:
        raise Problem("serve: name one checkpoint, as in scripts/serve.py myckpt/.../best_model.pth")
    for name in ("port", *LIMITS):
        value = given.get(name, "1")
        if not value.isdecimal() or not 1 <= len(value) <= 9 or int(value) < (0 if name == "port" else 1):
            raise Problem(f"--{name}: expected a whole number from 1, got {quoted(value)}")
    if int(given.get("port", "0")) > 65535:
        raise Problem(f"--port: {given['port']} is above 65535")
    return paths[0], given, [w for w in words if w.startswith("--")]


def listening(host: str, port: int) -> socket.socket:
    """A bound socket; Problem when the address is not to be had. Port 0: any that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as e:
        bound.close()
        raise Problem(f"{host}, port {port}: cannot listen there ({e}); choose another --port or --host") from None
    return bound


def serve(argv: list[str]) -> None:
    """Load the model, then answer until a signal asks to stop."""
    path, given, overrides = arguments(argv)
    if lacking := [n for n in ("fastapi", "uvicorn") if importlib.util.find_spec(n) is None]:
        raise Problem(f"serve: needs {' and '.join(lacking)}; pip install fastapi uvicorn")
    import uvicorn

    from serve.app import Limits, create_app

    host = given.get("host", "127.0.0.1")
    wanted: dict[str, Any] = {field: int(given[name]) for name, field in LIMITS.items() if name in given}
    limits = replace(Limits(), **wanted)
    loaded = load(path, overrides)
    bound = listening(host, int(given.get("port", "8000")))
    local = host in LOOPBACK
    if not local:
        log.warning(
            f"listening on {host}: EVERYBODY who reaches this address can ask the model, there are no passwords; put a "
            "proxy with access control and TLS before it, or leave --host out"
        )
    hosts = [*LOOPBACK, "[::1]"] if local else None
    sys.setswitchinterval(0.0005)  # the thread that ranks need not wait 5 ms for the one that reads requests
    app = create_app(loaded, limits, hosts)
    log.info(f"{path}: {len(loaded.items)} items, http://{host}:{bound.getsockname()[1]}/ (Ctrl-C ends it)")
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=5, limit_concurrency=1024,
                            timeout_graceful_shutdown=10)  # fmt: skip
    # a Ctrl-C that meets the server's start or end is no error of it: no traceback
    logging.getLogger("uvicorn.error").addFilter(lambda record: "KeyboardInterrupt" not in record.getMessage())
    uvicorn.Server(config).run(sockets=[bound])


if __name__ == "__main__":
    log_to(None, main=True)
    as_command(__doc__, serve)
