"""Pre-train a tokenizer: python scripts/pretrain.py --config config/beauty.yaml [--tokenizer=rq_kmeans] [--key=value]

Options of the loop of a learned tokenizer begin with rqvae_ (rqvae_epochs, rqvae_lr, ...); those of data and
tokenizer concern the later stages too. Ends with a table of the SIDs, which is kept beside the tokenizer as sids.json;
with --target_length=2.0 of SIDs of unlike length, as sids-2.0.json (with --max_group=16 too, as
sids-2.0-group-16.json).

Several processes share each step of rqvae and contrastive out, and come to what one does:

  python scripts/launcher.py --config_file accelerate_multi_cpu.yaml scripts/pretrain.py --config FILE [--key=value]
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import torch
from accelerate import PartialState

import main
from compose import build, cli, configure
from joint.moving import JointMethod
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs import guard
from settings import Config
from sids import distributed
from utils import Problem, log_to, write_json


def run(argv: list[str]) -> None:
    try:
        pretrain(argv)
    except Problem:
        if int(os.environ.get("LOCAL_RANK", "0")) > 0:  # all processes have the same; the first one says it
            raise SystemExit(2) from None
        raise


def pretrain(argv: list[str]) -> None:
    cfg = cli.configuration(argv, __doc__, main.check_data, composed=without_training)
    if not build.reads_content(cfg):
        raise Problem("method: has no tokenizer to pre-train; use --method=two_stage, and not --tokenizer=given")
    if "WORLD_SIZE" in os.environ:
        PartialState(cpu=not torch.cuda.is_available())  # joins the others
    log_to(None, main=distributed.rank() == 0)
    data = read_dataset(cfg[DataOptions])
    path = build.train_tokenizer(cfg, data)
    if distributed.rank() == 0:
        write_json(build.length_file(cfg, path), build.sid_figures(cfg, data, path))
        print(f"tokenizer: {path}")


def without_training(preset: dict[str, object], given: dict[str, object]) -> Config:
    """A tokenizer that cannot be trained jointly can be pre-trained all the same: take it as a frozen one."""
    tokenizer = {**preset, **given}.get("tokenizer") or "rqvae"
    if tokenizer not in JointMethod.tokenizers and "method" not in given:
        preset |= {"method": "two_stage"}
    return configure.build(preset, given)


if __name__ == "__main__":
    guard.command(run)
