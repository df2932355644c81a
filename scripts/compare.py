"""One table of several methods on one data set: same split, same users, several seeds.

  python scripts/compare.py scientific sasrec,diffsasrec,two_stage,frqud --data_path=DIR [--seeds 2020,2021]
                            [--config FILE] [--key=value ...]

Methods: sasrec, diffsasrec, diffsasrec_sft, two_stage, a decay (frqud, sdud, ...), popularity, content;
with _multi or _autoregressive behind it, one of the first three is decoded that way. Parts that are not the preset's
stand in brackets: two_stage[rq_kmeans], frqud[rq_transformer]. A method's preset is
config/<data set>_<method>.yaml, else that of --config, else config/<data set>.yaml, or such a file beside the data.
Finished runs of the same options are reused. Each method is compared with the first, paired over users and seeds.
NPROC=2 trains and ranks on two processes.
"""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

from compose import cli
from metrics import EvalOptions
from scripts import study
from utils import Problem, as_command, keep_freed_memory


def compare(argv: list[str]) -> dict[str, Any]:
    """Train or find all runs, print and save their table, return it; Problem when they cannot be compared."""
    _, words, ask = study.asked(argv, [])
    if len(words) != 1:
        raise Problem("compare: needs a data set and methods, as in: scientific sasrec,two_stage,frqud --data_path=DIR")
    names = list(dict.fromkeys(n for n in re.split(r",(?![^\[]*\])", words[0]) if n))
    if not names:
        raise Problem(f"{words[0]!r} names no method; for example sasrec,two_stage,frqud")
    jobs = study.plan({n: study.Arm(n, n, label=n, control=names[0]) for n in names}, ask, [])
    data, cfg = study.data_of(jobs), jobs[0].cfg
    found = study.run_all(jobs, ask, data).report("compare", cfg[EvalOptions].metrics, cfg[EvalOptions].valid_metric)
    table: dict[str, Any] = found["tables"]["test"]
    return table

if __name__ == "__main__":
    keep_freed_memory()
    as_command(f"{__doc__}\n{cli.help_text()}", compare)
