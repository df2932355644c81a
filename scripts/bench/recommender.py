"""The RQ-Transformer beside our T5 and beside a plain Hugging Face T5, on the same data and semantic IDs.

At the published width, with 6 blocks over the items and 2 over the tokens of a SID where the T5 has 6 + 6 layers.
"""

import dataclasses
from functools import partial
from typing import Any

from compose import configure
from scripts.bench.common import Figures, Job, figure, interleave, peak_memory_of
from scripts.bench.search import OurSearch
from scripts.bench.train import OurSteps, PlainSteps, widest_step


def changed(job: Job, **changes: Any) -> Job:
    return dataclasses.replace(job, cfg=configure.change(job.cfg, **changes))


def sides(job: Job) -> dict[str, Job]:
    """The same job with each network."""
    rq = {"item_blocks": 6, "depth_blocks": 2, "legal_softmax": True, "assignment_forward": "history"}
    return {"rq": changed(job, recommender="rq_transformer", **rq), "t5": changed(job, recommender="t5")}


def measure(job: Job) -> Figures:
    """Training samples/s (frozen and joint), users/s of a search and peak memory; the baseline is our T5."""
    jobs, data = sides(job), job.data()
    memory = [peak_memory_of(widest_step, jobs[name]) for name in ("rq", "t5")]  # while this process holds little
    frozen = {name: OurSteps(jobs[name], data) for name in jobs}
    joint, plain = OurSteps(jobs["rq"], data, "diger"), PlainSteps(jobs["t5"], data)
    steps: dict[str, Any] = {**frozen, "joint": joint, "plain": plain}
    for side in steps.values():
        side.warm_up()
    speed = interleave(job.rounds, {name: side.samples_per_s for name, side in steps.items()})
    cost = [a / b for a, b in zip(speed["rq"], speed["joint"], strict=True)]
    searches = {name: OurSearch(jobs[name], data) for name in jobs}
    width = job.beams[0]
    users = interleave(job.rounds, {name: partial(side.users_per_s, width) for name, side in searches.items()})
    return {
        "samples_per_s": figure(speed["rq"], speed["t5"]),
        "samples_per_s_beside_plain": figure(speed["rq"], speed["plain"]),
        "joint_samples_per_s": figure(speed["joint"]),
        "joint_step_cost": figure(cost),
        "users_per_s": figure(users["rq"], users["t5"]),
        "peak_memory_gb": figure(*memory),
    }

