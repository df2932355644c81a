"""Where the time of a training step goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from scripts.bench.common import Job
from scripts.bench.train import OurSteps


def show(job: Job, trace: str | None) -> None:
    """Print the share of each named region of joint steps; write a Chrome trace if a file is named."""
    steps = OurSteps(job, job.data(), "diger")
    steps.run(0)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=kinds) as recorded, regions(steps):
        steps.run(1)
    events = recorded.key_averages()
    spent = {e.key.removeprefix("diger: "): e.cpu_time_total for e in events if e.key.startswith("diger: ")}
    whole = spent.pop("step")
    inside_backward = whole - sum(spent.values())
    for name, microseconds in {**spent, "the rest": inside_backward}.items():
        print(f"  {name:40} {microseconds / whole:6.1%}")
    print("\nby operator")
    sort = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(events.table(sort_by=sort, row_limit=15, max_name_column_width=40))
    if trace is not None:
        recorded.export_chrome_trace(trace)
        print(f"trace: {trace}")


@contextmanager
def regions(steps: OurSteps) -> Iterator[None]:
    """Name the parts of a step for the profiler, from outside: the product's code knows nothing of it."""
    fit, model = steps.fit, cast(Any, steps.fit.raw)
    named = [
        (model, "quantize", "quantize"),
        (model.recommender, "encode", "encoder"), (model.recommender.t5, "decode", "decoder"),
        (fit.acc, "backward", "backward"), (fit, "_agree", "agree"),
        (fit.optimizer, "step", "optimizer"), (fit, "step", "step"),
    ]  # fmt: skip
    before = [(owner, name, owner.__dict__.get(name)) for owner, name, _ in named]
    for owner, name, label in named:
        setattr(owner, name, _recorded(getattr(owner, name), label))
    try:
        yield
    finally:
        for owner, name, old in before:
            setattr(owner, name, old) if old is not None else delattr(owner, name)


def _recorded(function: Any, label: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(f"diger: {label}"):
            return function(*args, **kwargs)

    return call
