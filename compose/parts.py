"""Every part by name: a new tokenizer, network, joint method or model is a file and a line here.

A run has a tokenizer, a recommender over its semantic IDs and a method that trains them, or a model over items alone.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import settings
from joint.diger import Diger
from joint.em import EM
from joint.etegrec import ETEGRec
from joint.moving import JointMethod
from joint.uncertainty import DECAYS, UncertaintyOptions
from metrics import EvalOptions
from model import GenerativeModel
from readers.dataset import Dataset, read_embeddings
from readers.splits import DataOptions
from recommenders.baselines import Content, Popularity
from recommenders.decoder import Decoder
from recommenders.diffusion import DiffSASRec, FineTuned
from recommenders.lm import CausalLM, Seq2SeqLM
from recommenders.protocol import Ranker
from recommenders.rq_transformer import RQTransformer
from recommenders.sasrec import SASRec
from recommenders.t5 import T5Network
from runs.folder import RunOptions
from settings import Config, option
from sids.checkpoint import PretrainOptions
from sids.contrastive import ContrastiveRQVAE
from sids.dvae import DVAE
from sids.precomputed import Given
from sids.random_codes import RandomCodes
from sids.reinforce import Reinforce
from sids.rq_kmeans import RQKMeans
from sids.search import SearchOptions
from sids.table import SidOptions
from sids.tokenizer import Learned
from trainer import TrainOptions
from utils import Contradiction, Problem, nearest, shown
from vq import RQVAE

# ---------------------------------------------------------------- the parts, by name

TOKENIZERS: dict[str, Any] = {
    "rqvae": RQVAE,
    "rq_kmeans": RQKMeans,
    "contrastive": ContrastiveRQVAE,
    "random_codes": RandomCodes,
    "dvae": DVAE,
    "reinforce": Reinforce,
    "given": Given,
}
NETWORKS: dict[str, Any] = {
    "t5": T5Network,
    "rq_transformer": RQTransformer,
    "decoder": Decoder,
    "causal_lm": CausalLM,
    "seq2seq_lm": Seq2SeqLM,
}
JOINT: dict[str, type[JointMethod]] = {  # methods whose SIDs move while the recommender learns
    "diger": Diger,
    "em": EM,
    "etegrec": ETEGRec,
}
FROZEN: dict[str, type[GenerativeModel]] = {"two_stage": GenerativeModel}
ITEM_MODELS: dict[str, Any] = {"sasrec": SASRec, "diffsasrec": DiffSASRec, "diffsasrec_sft": FineTuned}
GENERATIVE = {**JOINT, **FROZEN}  # over semantic IDs
METHODS = [*GENERATIVE, *ITEM_MODELS]
BASELINES: dict[str, Callable[[Dataset], Ranker]] = {  # need no training
    "popularity": lambda data: Popularity(data.popularity),
    "content": lambda data: Content(read_embeddings(data)),
}


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    method: str = option(
        "diger",
        f"what to train: {', '.join(GENERATIVE)} recommend by semantic IDs, {', '.join(ITEM_MODELS)} by item "
        "embeddings",
    )
    tokenizer: str | None = option(
        "rqvae", f"model that turns content embeddings into semantic IDs: {', '.join(TOKENIZERS)}"
    )
    recommender: str | None = option("t5", f"network over semantic IDs: {', '.join(NETWORKS)}")

    @property
    def joint(self) -> bool:
        """Does the tokenizer learn with the recommender?"""
        return self.method in JOINT


# ---------------------------------------------------------------- which parts a run is made of


def composition(preset: Mapping[str, Any], given: Mapping[str, Any]) -> MethodOptions:
    """The parts that a file's options and a command line ask for; the command line wins.

    Problem when a name is unknown, or when two of them contradict each other.
    """
    names = settings.fields_of(MethodOptions)
    preset, given = ({k: v for k, v in source.items() if k in names and v is not None} for source in (preset, given))
    for key, value in [*preset.items(), *given.items()]:
        settings.check_value(MethodOptions, key, value)
    both = {**preset, **given}
    method = both.get("method") or (both["recommender"] if both.get("recommender") in ITEM_MODELS else "diger")
    check_method(method)
    if method in ITEM_MODELS:
        if wrong := [k for k in given if k != "method" and (k, given[k]) != ("recommender", method)]:
            raise Contradiction(f"--{wrong[0]}: {method} recommends by items, it has no {wrong[0]} to choose",
                                {"method": "two_stage"}, idle=True)  # fmt: skip
        return MethodOptions(method=method, tokenizer=None, recommender=None)
    tokenizer, network = both.get("tokenizer", "rqvae"), both.get("recommender", "t5")
    check_known("tokenizer", tokenizer, TOKENIZERS)
    check_known("recommender", network, NETWORKS)
    if method in JOINT and tokenizer not in JOINT[method].tokenizers:
        able = ", ".join(JOINT[method].tokenizers)
        raise Contradiction(
            f"tokenizer: {tokenizer} cannot be trained jointly with a recommender by {method} (only {able} can); "
            "use method: two_stage",
            {"method": "two_stage"}, {"tokenizer": JOINT[method].tokenizers[0]},
        )  # fmt: skip
    return MethodOptions(method=method, tokenizer=tokenizer, recommender=network)


def sections(m: MethodOptions) -> dict[str, type]:
    """Title -> options of each part of a run, those that tell runs apart first."""
    kinds: dict[str, type] = {"method": MethodOptions}
    if m.method in ITEM_MODELS:
        kinds[f"recommender {m.method}"] = ITEM_MODELS[m.method].Options
    else:
        kinds |= tokenizer_sections(str(m.tokenizer))
        kinds[f"recommender {m.recommender}"] = NETWORKS[str(m.recommender)].Options
        kinds |= {"semantic IDs": SidOptions, "search": SearchOptions}
    if m.joint:
        kinds |= JOINT[m.method].option_groups
    return kinds | {"data": DataOptions, "training": TrainOptions, "evaluation": EvalOptions, "run": RunOptions}


def tokenizer_sections(name: str) -> dict[str, type]:
    kind = TOKENIZERS[name]
    learned = {"pre-training": PretrainOptions} if issubclass(kind, Learned) else {}
    return {f"tokenizer {name}": kind.Options, **learned}


def all_sections() -> dict[str, type]:
    """Title -> options of every part there is."""
    kinds = sections(MethodOptions())
    for name in TOKENIZERS:
        kinds |= tokenizer_sections(name)
    for name, kind in {**NETWORKS, **ITEM_MODELS}.items():
        kinds[f"recommender {name}"] = kind.Options
    for method in JOINT.values():
        kinds |= method.option_groups
    return kinds


@functools.cache
def owners() -> dict[str, dict[str, type]]:
    """Option -> the parts that have it: title -> options."""
    found: dict[str, dict[str, type]] = {}
    for title, kind in all_sections().items():
        for key in settings.fields_of(kind):
            found.setdefault(key, {})[title] = kind
    return found


def ways_to(titles: Iterable[str]) -> list[dict[str, str]]:
    """What would give a run one of some sections: each a part and its name."""
    ways: list[dict[str, str]] = []
    for title in titles:
        part, _, name = title.partition(" ")
        if name in {**TOKENIZERS, **NETWORKS}:
            ways.append({part: name})
        elif name in ITEM_MODELS:
            ways.append({"method": name})
        else:  # of all methods over semantic IDs, or of some
            ways += [{"method": m} for m in (*FROZEN, *JOINT) if title in sections(MethodOptions(method=m))]
    return ways


def own_groups(cfg: Config) -> list[Any]:
    """The options of a joint method, group by group."""
    return [cfg[kind] for kind in JOINT[cfg[MethodOptions].method].option_groups.values()]


def label(cfg: Config) -> str:
    """Name of a run in tables: the decay for DIGER, else the method; parts that are not the usual ones in brackets."""
    m = cfg[MethodOptions]
    name = cfg[UncertaintyOptions].uncertainty if UncertaintyOptions in cfg else m.method
    usual = MethodOptions()
    unusual = [v for k in ("tokenizer", "recommender") if (v := getattr(m, k)) not in (None, getattr(usual, k))]
    return f"{name}[{'+'.join(unusual)}]" if unusual else name


def folder_name(cfg: Config) -> str:
    """The label without what a shell would take for a pattern."""
    return label(cfg).replace("[", "-").replace("]", "")


# ---------------------------------------------------------------- refusals


def check_known(key: str, name: Any, known: Mapping[str, Any]) -> None:
    if name not in known:
        near = nearest(str(name), known)
        hint = f"; did you mean {near!r}?" if near else ""
        raise Problem(f"{key}: {shown(name)} is not one of {', '.join(known)}{hint}")


def check_method(name: Any) -> None:
    """Problem when there is no such method to train."""
    if name in BASELINES:
        raise Problem(f"method: {name!r} has nothing to train; every run prints its figures beside its own")
    if name in DECAYS:
        raise Problem(f"method: {name} is an uncertainty of DIGER; set --uncertainty={name}, and method: diger")
    if name not in METHODS:
        raise Problem(f"method: {shown(name)} is not one of {', '.join(METHODS)}")
