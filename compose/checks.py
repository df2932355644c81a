"""What contradicts between the parts of a run."""

from typing import Any

import settings
from compose.parts import JOINT, MethodOptions, own_groups
from metrics import EvalOptions, cutoff
from readers.splits import DataOptions
from recommenders.items import ItemOptions
from recommenders.tokens import WholeItemOptions
from runs.folder import RunOptions
from settings import Config
from sids.search import SearchOptions
from sids.table import SidOptions
from sids.tokenizer import CodeOptions
from utils import Contradiction, Problem, quoted


def check_together(cfg: Config) -> None:
    """Problem when options of different parts contradict each other."""
    check_lists(cfg)
    if cfg[MethodOptions].joint:
        JOINT[cfg[MethodOptions].method].check(cfg[SearchOptions], *own_groups(cfg))
    if SidOptions in cfg and cfg[SidOptions].collision == "item" and not cfg[SearchOptions].legal_softmax:
        raise Contradiction(
            "collision: item has as many dedup tokens as there are items, of which a few may follow a prefix; it needs "
            "legal_softmax: true",
            {"collision": "suffix"}, {"legal_softmax": True},
        )  # fmt: skip
    check_variable_length(cfg)
    ranks_items = WholeItemOptions in cfg and cfg[WholeItemOptions].item_loss and cfg[WholeItemOptions].item_rank
    if ranks_items and not cfg[SearchOptions].constrained:
        raise Contradiction(
            "constrained: false lists SIDs that are no items, which item_rank cannot rank; set item_rank: 0",
            {"item_rank": 0}, {"constrained": True},
        )  # fmt: skip
    if CodeOptions in cfg and cfg[CodeOptions].given and cfg[SidOptions].collision in ("knn", "random"):
        raise Contradiction(
            f"collision: {cfg[SidOptions].collision} moves items by a tokenizer's distances; SIDs of sid_path are "
            "taken as they are: use suffix, item or none",
            {"collision": "suffix"}, {"tokenizer": "rqvae"},
        )  # fmt: skip
    if cfg[MethodOptions].joint and cfg[SidOptions].shared:
        raise Contradiction(
            f"collision: {cfg[SidOptions].collision} resolves the codes of a frozen tokenizer; joint training moves "
            "them: use suffix or item, or method: two_stage",
            {"collision": "suffix"}, {"method": "two_stage"},
        )  # fmt: skip
    run, data = cfg[RunOptions], cfg[DataOptions]
    if run.resume == "auto" and run.run_name is None:
        raise Problem("resume: auto needs a run_name, that of the run to continue")
    for key, name in (("run_name", run.run_name), ("dataset", data.dataset)):
        if name is not None and not settings.plain_name(name):
            raise Problem(f"{key}: {quoted(name)} is not a plain name; folders go to output_dir and data_path")


def check_variable_length(cfg: Config) -> None:
    """Problem when SIDs of unlike length cannot be had with the other parts."""
    if CodeOptions not in cfg or not cfg[CodeOptions].variable_length:
        return
    now = settings.flat(cfg)
    even = {k: v for k, v in EVEN.items() if now.get(k, v) not in (v, "cut")}
    name = next(iter(even))
    if cfg[MethodOptions].joint:
        raise Contradiction(
            f"{name}: a tokenizer that learns with the recommender has SIDs of one length; use method: two_stage",
            {"method": "two_stage"}, even,
        )  # fmt: skip
    if cfg[SidOptions].collision != "suffix":
        raise Contradiction(
            f"{name}: variable-length SIDs end in a number within their group; use collision: suffix",
            {"collision": "suffix"}, even,
        )  # fmt: skip
    if not cfg[SearchOptions].constrained:
        raise Contradiction(f"{name}: variable-length SIDs are found by a search among those that exist, which "
                            "constrained: false rules out", {"constrained": True}, even)  # fmt: skip


EVEN = {"target_length": None, "length": "fixed", "sid_lengths": "equal"}  # of SIDs that are all of one length


def check_lists(cfg: Config) -> None:
    """Problem when the lists that metrics ask for are longer than what a method can make."""
    longest, most = max(map(cutoff, cfg[EvalOptions].metrics)), cfg[DataOptions].max_his_len
    beams = cfg[SearchOptions].num_beams if SearchOptions in cfg else longest
    if longest > beams:
        raise Contradiction(
            f"num_beams: {beams} is below the largest cut-off of metrics, {longest}; raise it",
            {"num_beams": longest}, shorter(cfg[EvalOptions], beams),
        )  # fmt: skip
    multi = ItemOptions in cfg and cfg[ItemOptions].decoding == "multi"
    if multi and longest > most:
        raise Contradiction(
            f"max_his_len: {most} positions cannot hold lists of {longest} items, as metrics and decoding: multi need",
            {"max_his_len": longest}, {"decoding": "single"}, shorter(cfg[EvalOptions], most),
        )  # fmt: skip


def shorter(cfg: EvalOptions, most: int) -> dict[str, Any]:
    """The same metrics of lists of at most so many items, where they are others."""
    name, *names = [f"{m.partition('@')[0]}@{min(cutoff(m), most)}" for m in (cfg.valid_metric, *cfg.metrics)]
    return {"metrics": list(dict.fromkeys(names))} | ({"valid_metric": name} if name != cfg.valid_metric else {})
