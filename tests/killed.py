"""Commands in processes of their own, forked ready-made: they may be several, kill themselves, or have odd streams.

Imported by multiprocessing's fork server, so that torch and what tests share is loaded once for all of them.
"""

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo  # a second's work, which the first step of an optimizer would do in each of them

import evaluation
import main
import trainer
import utils
from runs import folder

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["killed", "conftest", "helpers"])


class Process(server.Process):
    """Process(target=function, args=...) of the fork server, which imports what it preloads by our own path."""

    def start(self):
        with pytest.MonkeyPatch.context() as patch:  # Python 3.11 ignores the path that it is told
            patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
            super().start()


def train(folder, argv, *, processes=1, kill=(), timeout=120, environment=None, run=main.main):
    """Run main.py's training in `processes` processes; returns (exit codes, what they printed).

    run: another command. kill: (place, step) pairs, place one of step, write, evaluation: where rank 0 ends by SIGKILL.
    environment: what the launcher tells them besides.
    """
    port = free_port()
    said = [folder / f"said-{rank}.txt" for rank in range(processes)]
    children = [
        Process(target=_child, args=(run, argv, rank, processes, port, said[rank], kills, environment or {}))
        for rank, kills in enumerate([dict(kill), *[{}] * (processes - 1)])
    ]
    for child in children:
        child.start()
    children[0].join(timeout)
    for child in children:  # what the launcher does once a process has failed
        child.join(timeout if children[0].exitcode == 0 else 0)
        if child.is_alive():
            child.kill()
        child.join()
    return [child.exitcode for child in children], [path.read_text() for path in said]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def join_group(rank, processes, port):
    """What the launcher tells a worker."""
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "DIGER_PROCESSES": str(processes),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip


def _child(run, argv, rank, processes, port, said, kill, environment):
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    join_group(rank, processes, port)
    os.environ |= environment
    _arm(kill)
    with utils.problems_exit_2():
        run(argv)


def _arm(kill):
    """Have this process kill itself in a step, while a state is written, or in an evaluation."""
    progress = []

    def die(place, written):
        print(f"SIGKILL in {place}: step {progress[0].step}, {written} bytes written", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def step(fit, parts):
        progress[:] = [fit.progress]
        return real_step(fit, parts)

    def clip(*args):  # behind the backward pass, before the update
        if kill.get("step") == progress[0].step:
            die("step", 0)
        return real_clip(*args)

    def write(path, state):
        if "write" in kill and path.parent.name == "last" and state["progress"]["step"] >= kill["write"]:
            content = bytes(500_000)[: kill["write"] * 997]
            aside = path.with_name(f".{path.name}.{os.getpid()}.part")
            Path(aside).write_bytes(content)
            die("write", len(content))
        real_write(path, state)

    def fitting(rows, work):
        if "evaluation" in kill and progress and progress[0].step >= kill["evaluation"]:
            die("evaluation", 0)
        real_fitting(rows, work)

    real_step, real_clip = trainer.Trainer.step, trainer.clip_by_group
    real_write, real_fitting = folder.write_checkpoint, evaluation.halved_until_it_fits
    trainer.Trainer.step, trainer.clip_by_group = step, clip
    folder.write_checkpoint, evaluation.halved_until_it_fits = write, fitting


# ---------------------------------------------------------------- streams


def delivered(folder, cases):
    """Run main.py's commands, all at once, where nobody takes what they say; [(exit code, its stderr), ...].

    cases: (argv, stdout, stderr), each stream one of gone (a pipe without a reader), full, file, closed.
    """
    said = [folder / f"err-{number}" for number in range(len(cases))]
    children = [Process(target=_with_streams, args=(*case, path)) for case, path in zip(cases, said, strict=True)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    return [(c.exitcode, path.read_text() if path.exists() else "") for c, path in zip(children, said, strict=True)]


def _with_streams(argv, out, err, said):
    torch.set_num_threads(1)
    for fd, name, kind in ((1, "stdout", out), (2, "stderr", err)):
        if kind == "closed":  # as the interpreter leaves it when it starts so
            os.close(fd)
            setattr(sys, name, None)
        else:
            os.dup2(_stream(kind, said if fd == 2 else said.with_suffix(".out")), fd)
            setattr(sys, name, os.fdopen(fd, "w", closefd=False))
    sys.argv[1:] = argv
    main.guard.command(main.main)


def _stream(kind, path):
    if kind == "gone":
        read, write = os.pipe()
        os.close(read)
        return write
    return os.open({"full": "/dev/full", "file": path}[kind], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
