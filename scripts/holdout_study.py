"""Codes for items that a tokenizer has never seen: it is made without a tenth of them, which it then encodes.

  python scripts/holdout_study.py config/scientific_varlen.yaml --data_path=DIR [--target_length=2.0] [--key=value ...]

The tenth is drawn by the seed; none of its interactions counts. One price of a token holds for all. The table has
length and error of both groups, weighted by their true training counts and not.
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import numpy as np

from compose import build, cli, configure
from readers.dataset import read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs.table import markdown
from sids.cut import codes_of, count_weights
from sids.tokenizer import CodeOptions
from utils import Problem, as_command, digest, log, log_to

SHARE = 0.1


def study(argv: list[str]) -> dict[str, dict[str, float]]:
    """Train or find the tokenizer; figures of both groups."""
    _, names, overrides = cli.words_and_options(argv, [])
    if len(names) != 1:
        raise Problem("holdout_study: needs a preset, as in: config/scientific_varlen.yaml --data_path=DIR")
    log_to(None, main=True)
    cfg = configure.build(cli.preset_of(Path(names[0]), overrides), overrides)
    if not build.reads_content(cfg) or cfg[CodeOptions].rqvae_path is not None:
        raise Problem("holdout_study: makes a tokenizer of content; use --method=two_stage and leave rqvae_path out")
    if getattr(cfg[CodeOptions], "weights", None) != "counts":
        raise Problem(
            "holdout_study: needs a tokenizer with weights: counts, for which an item without any is not there"
        )
    data = read_dataset(cfg[DataOptions])
    count_N = data.popularity[1:]
    held_N = np.zeros(len(count_N), bool)
    random = np.random.default_rng([cfg[DataOptions].seed, 14])
    held_N[random.permutation(len(count_N))[: round(SHARE * len(count_N))]] = True
    seen = np.concatenate([[0], np.where(held_N, 0, count_N)])
    less = dataclasses.replace(data, popularity=seen, hash=digest(data.hash, "holdout", held_N.nonzero()[0].tolist()))
    tokenizer = build.tokenizer_of(cfg, less, build.train_tokenizer(cfg, less)).eval()
    code_NT, error_NT = codes_of(tokenizer, read_embeddings(data), seen[1:])
    length_N = (code_NT >= 0).sum(1).numpy()
    own_N = error_NT[np.arange(len(length_N)), length_N - 1]
    found = {}
    for name, group in (("fitted", ~held_N), ("held out", held_N)):
        share = count_weights(count_N[group])
        found[name] = {"items": int(group.sum()), "length": float(share @ length_N[group]),
                       "length uniform": float(length_N[group].mean()), "error": float(share @ own_N[group]),
                       "error uniform": float(own_N[group].mean())}  # fmt: skip
    lines = [[name, *(f"{v:.4g}" for v in row.values())] for name, row in found.items()]
    log.info(f"\n{markdown(['group', *found['fitted']], lines)}")
    return found


if __name__ == "__main__":
    as_command(__doc__, study)
