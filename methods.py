"""Every part by name: a new tokenizer, network or model is a file and a line here.

A run is composed of a tokenizer, a recommender and the way they are trained, or of a recommender over items
alone; `method` names such compositions. Parts are strings, "module:class", because they import this module's
neighbours, and those of `MODELS` this module itself.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import settings
from metrics import EvalOptions, cutoff
from prior import PriorOptions
from readers.dataset import Dataset, read_embeddings
from readers.splits import DataOptions
from recommenders.protocol import Ranker
from retired import RETIRED
from runs.folder import RunOptions
from settings import Config, option
from sids.kept import FitOptions
from sids.search import SearchOptions
from sids.table import SidOptions
from sids.tokenizer import CodeOptions, is_learned
from trainer import TrainOptions
from uncertainty import UncertaintyOptions
from utils import Problem, nearest, quoted, seeds_of, shown
from vq import QuantizerOptions, RQVAEOptions

# ---------------------------------------------------------------- the parts, by name

TOKENIZERS = {
    "rqvae": "vq:RQVAE",
    "rq_kmeans": "sids.rq_kmeans:RQKMeans",
    "contrastive": "sids.contrastive:ContrastiveRQVAE",
    "random_codes": "sids.random_codes:RandomCodes",
    "dvae": "sids.dvae:DVAE",
    "reinforce": "sids.reinforce:Reinforce",
    "given": "sids.given:Given",
}
JOINT = {"rqvae": "vq:JointRQVAE", "contrastive": "vq:JointRQVAE"}  # the form that learns with a recommender
NETWORKS = {
    "t5": "recommenders.t5:T5Network",
    "rq_transformer": "recommenders.rq_transformer:RQTransformer",
    "decoder": "recommenders.decoder:Decoder",
}
ITEM_MODELS = {
    "sasrec": "recommenders.sasrec:SASRec",
    "diffsasrec": "recommenders.diffusion:DiffSASRec",
    "diffsasrec_sft": "recommenders.diffusion:FineTuned",
}
TRAINING: dict[str, Literal["joint", "frozen"]] = {"diger": "joint", "two_stage": "frozen"}  # methods over semantic IDs
MODELS = {"joint": "joint:JointModel", "frozen": "model:GenerativeModel"}
METHODS = [*TRAINING, *ITEM_MODELS]
FLOORS: dict[str, Callable[[Dataset], Ranker]] = {  # need no training
    "popularity": lambda data: part("recommenders.floors:Popularity")(data.popularity),
    "content": lambda data: part("recommenders.floors:Content")(read_embeddings(data)),
}


def part(place: str) -> Any:
    """The class at `module:Class`."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    method: str = option("diger", f"{', '.join(METHODS)}; the first two recommend by semantic IDs, the others by items")
    tokenizer: str | None = option("rqvae", f"what makes the semantic IDs: {', '.join(TOKENIZERS)}")
    recommender: str | None = option("t5", f"network over semantic IDs: {', '.join(NETWORKS)}")
    training: Literal["joint", "frozen"] | None = option("joint", "tokenizer trained with the recommender or frozen")


# ---------------------------------------------------------------- which parts a run is made of


def composition(preset: Mapping[str, Any], given: Mapping[str, Any]) -> MethodOptions:
    """The parts that a file's options and a command line ask for; the command line wins.

    Problem when a name is unknown, or when two of them contradict each other.
    """
    names = settings.fields_of(MethodOptions)
    preset, given = ({k: v for k, v in source.items() if k in names and v is not None} for source in (preset, given))
    for key, value in [*preset.items(), *given.items()]:
        settings.check_value(MethodOptions, key, value)
    method = given.get("method")
    if method is None and "training" not in given:
        method = preset.get("method")
        given = {**{k: v for k, v in preset.items() if k == "training" and method}, **given}  # must agree with it
    method = method or _implied({**preset, **given})
    check_method(method)
    if method in ITEM_MODELS:
        if wrong := [k for k in given if k != "method" and (k, given[k]) != ("recommender", method)]:
            raise Problem(f"--{wrong[0]}: {method} recommends by items, it has no {wrong[0]} to choose")
        return MethodOptions(method=method, tokenizer=None, recommender=None, training=None)
    if "training" in given and given["training"] != TRAINING[method]:
        raise Problem(f"training: {given['training']} contradicts method: {method}, which is {TRAINING[method]}")
    both = {**preset, **given}
    tokenizer, network = both.get("tokenizer", "rqvae"), both.get("recommender", "t5")
    check_known("tokenizer", tokenizer, TOKENIZERS)
    check_known("recommender", network, NETWORKS)
    if TRAINING[method] == "joint" and tokenizer not in JOINT:
        raise Problem(
            f"tokenizer: {tokenizer} cannot be trained jointly with a recommender (only {', '.join(JOINT)} can); "
            "use method: two_stage"
        )
    return MethodOptions(method=method, tokenizer=tokenizer, recommender=network, training=TRAINING[method])


def _implied(names: Mapping[str, Any]) -> str:
    """The method that parts stand for where none is named."""
    if names.get("recommender") in ITEM_MODELS:
        return str(names["recommender"])
    by_training = {v: k for k, v in TRAINING.items()}
    return by_training.get(names.get("training", "joint"), "diger")


def sections(m: MethodOptions) -> dict[str, type]:
    """Title -> options of each part of a run, those that tell runs apart first."""
    kinds: dict[str, type] = {"method": MethodOptions}
    if m.method in ITEM_MODELS:
        kinds[f"recommender {m.method}"] = part(ITEM_MODELS[m.method]).Options
    else:
        kinds |= tokenizer_sections(str(m.tokenizer))
        kinds[f"recommender {m.recommender}"] = part(NETWORKS[str(m.recommender)]).Options
        kinds |= {"semantic IDs": SidOptions, "search": SearchOptions}
    if m.training == "joint":
        kinds |= {
            "uncertainty decay": UncertaintyOptions,
            "joint quantizer": QuantizerOptions,
            "label prior": PriorOptions,
            "joint training": part(MODELS["joint"]).Options,
        }
    return kinds | {"data": DataOptions, "training": TrainOptions, "evaluation": EvalOptions, "run": RunOptions}


def tokenizer_sections(name: str) -> dict[str, type]:
    kind = part(TOKENIZERS[name])
    learned = {"pre-training": FitOptions} if is_learned(kind) else {}
    return {f"tokenizer {name}": kind.Options, **learned}


def all_sections() -> dict[str, type]:
    """Title -> options of every part there is."""
    kinds = sections(MethodOptions())
    for name in TOKENIZERS:
        kinds |= tokenizer_sections(name)
    for name, place in {**NETWORKS, **ITEM_MODELS}.items():
        kinds[f"recommender {name}"] = part(place).Options
    return kinds


def owners() -> dict[str, dict[str, type]]:
    """Option -> the parts that have it: title -> options."""
    found: dict[str, dict[str, type]] = {}
    for title, kind in all_sections().items():
        for key in settings.fields_of(kind):
            found.setdefault(key, {})[title] = kind
    return found


# ---------------------------------------------------------------- configuration


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read one YAML file (None: all defaults) and apply `--key=value` overrides.

    Raises Problem for whatever is wrong, quoting the key and the value.
    """
    return build({} if path is None else settings.read_yaml(Path(path)), parse_overrides(overrides))


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    return settings.parse_overrides(
        overrides, [k for kind in all_sections().values() for k in settings.takes_text(kind)]
    )


def words_and_options(argv: list[str], names: list[str]) -> tuple[dict[str, str], list[str], dict[str, Any]]:
    """(the command's own options, those of `names`, as text; plain words; options of the runs) of a command line.

    Own options and --data_path, which is taken as it stands, have their value behind `=` or as the next word.
    """
    own, rest = settings.split_off(argv, [*names, "data_path"])
    place = {"data_path": own.pop("data_path")} if "data_path" in own else {}
    options = parse_overrides([w for w in rest if w.startswith("-")])
    return own, [w for w in rest if not w.startswith("-")], options | place


def seeds_asked(given: dict[str, str], overrides: dict[str, Any], usual: str = "2020") -> list[str]:
    """The seeds of `--seeds`, or the one of `--seed`, which is taken out of the overrides; Problem when both are."""
    one = overrides.pop("seed", None)
    if one is None:
        return seeds_of(given.get("seeds", usual))
    settings.check_value(DataOptions, "seed", one)
    if "seeds" in given:
        raise Problem("--seed, --seeds: name one of the two")
    return seeds_of(str(one))


def build(preset: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Config:
    """Typed options of a run's parts. preset: as a file has them, those of other parts are left aside;
    given: as a command line has them, those of other parts are refused.
    """
    given = given or {}
    source = {**preset, **given}.get("data_path")
    if isinstance(source, str) and source.lower().endswith(".csv"):  # names the data set too
        preset = {"dataset": Path(source).stem, **preset}
    m = composition(preset, given)
    kinds, known = sections(m), owners()
    own = {key for kind in kinds.values() for key in settings.fields_of(kind)}
    for key in [*preset, *given]:
        if key not in known:
            raise unknown(str(key), known)
    if foreign := [key for key in given if key not in own]:
        raise Problem(
            f"--{foreign[0]} belongs to {' and '.join(known[foreign[0]])}, which this run does not have "
            f"({', '.join(title for title in kinds if ' ' in title)})"
        )
    raw = {**preset, **given}
    aside = {k: v for k, v in raw.items() if k not in own}
    for key, value in aside.items():  # a wrong value is refused, whoever it is for
        settings.check_value(next(iter(known[key].values())), key, value)
    chosen = {k: getattr(m, k) for k in settings.fields_of(MethodOptions)}
    cfg = settings.compose(kinds, {**{k: v for k, v in raw.items() if k in own}, **chosen})
    check_together(cfg)
    for key in given:
        if needs := settings.unread(cfg, key):
            raise Problem(f"--{key}: is read with {needs} only; set that too, or drop it")
    return replace(cfg, aside=aside)


def change(cfg: Config, **changes: Any) -> Config:
    """A copy with some options (flat names) changed, checked like any other."""
    names = settings.fields_of(MethodOptions)
    kept = {k: v for k, v in settings.flat(cfg).items() if k not in names or "method" not in changes}
    parts = {k: getattr(cfg[MethodOptions], k) for k in ("tokenizer", "recommender") if k not in changes}
    return build({**cfg.aside, **parts, **kept, **changes})


def unknown(key: str, known: Mapping[str, Any]) -> Problem:
    return Problem(f"option {key!r} {RETIRED[key]}") if key in RETIRED else settings.unknown(key, known)


def help_text(preset: Mapping[str, Any] | None = None, given: Mapping[str, Any] | None = None) -> str:
    """Every option, those of the chosen parts first."""
    own = sections(composition(preset or {}, given or {}))
    others = {f"{title} (not in this run)": kind for title, kind in all_sections().items() if title not in own}
    return settings.help_text(own | others)


def label(cfg: Config) -> str:
    """Name of a run in tables: the decay for DIGER, else the method; parts that are not the usual ones in brackets."""
    m = cfg[MethodOptions]
    name = cfg[UncertaintyOptions].uncertainty if m.method == "diger" else m.method
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
    if name in FLOORS:
        raise Problem(f"method: {name!r} has nothing to train; every run prints its figures beside its own")
    if name not in METHODS:
        raise Problem(f"method: {shown(name)} is not one of {', '.join(METHODS)}")


def check_together(cfg: Config) -> None:
    """Problem when options of different parts contradict each other."""
    check_lists(cfg)
    check_joint(cfg)
    if SidOptions in cfg and cfg[SidOptions].collision == "item" and not cfg[SearchOptions].legal_softmax:
        raise Problem(
            "collision: item has as many end tokens as there are items, of which a few may follow a prefix; it needs "
            "legal_softmax: true"
        )
    check_uneven(cfg)
    flat = settings.flat(cfg)
    if flat.get("item_loss") and flat.get("item_rank") and not flat["constrained"]:
        raise Problem("constrained: false lists SIDs that are no items, which item_rank cannot rank; set item_rank: 0")
    if CodeOptions in cfg and cfg[CodeOptions].given and cfg[SidOptions].collision in ("knn", "random"):
        raise Problem(
            f"collision: {cfg[SidOptions].collision} moves items by a tokenizer's distances; SIDs of sid_path are "
            "taken as they are: use suffix, item or none"
        )
    if cfg[MethodOptions].training == "joint" and cfg[SidOptions].shared:
        raise Problem(
            f"collision: {cfg[SidOptions].collision} resolves the codes of a tokenizer at rest; joint training moves "
            "them: use suffix or item, or method: two_stage"
        )
    if cfg[DataOptions].history_tokens is not None and CodeOptions not in cfg:
        raise Problem("history_tokens: counts tokens of semantic IDs, this run recommends by items; use max_his_len")
    run, data = cfg[RunOptions], cfg[DataOptions]
    if run.resume == "auto" and run.run_name is None:
        raise Problem("resume: auto needs the run_name to go on with")
    for key, name in (("run_name", run.run_name), ("dataset", data.dataset)):
        if name is not None and not settings.plain_name(name):
            raise Problem(f"{key}: {quoted(name)} is not a plain name; folders go to output_dir and data_path")


def check_uneven(cfg: Config) -> None:
    """Problem when SIDs of unlike length cannot be had with the other parts."""
    if CodeOptions not in cfg or not cfg[CodeOptions].uneven:
        return
    if cfg[MethodOptions].training == "joint":
        raise Problem(
            "target_length: a tokenizer that learns with the recommender has SIDs of one length; use method: two_stage"
        )
    if cfg[SidOptions].collision != "suffix":
        raise Problem("target_length: SIDs of unlike length end in a number within their group; use collision: suffix")
    if not cfg[SearchOptions].constrained:
        raise Problem("target_length: SIDs of unlike length are searched in the tree of those that exist; "
                      "it cannot go with constrained: false")  # fmt: skip


def check_lists(cfg: Config) -> None:
    """Problem when the lists that metrics ask for are longer than what a method can make."""
    longest = max(cutoff(name) for name in cfg[EvalOptions].metrics)
    if SearchOptions in cfg and longest > cfg[SearchOptions].num_beams:
        raise Problem(
            f"num_beams: {cfg[SearchOptions].num_beams} is below the largest cut-off of metrics, {longest}; raise it"
        )
    places = cfg[DataOptions].max_his_len
    multi = settings.flat(cfg).get("decoding") == "multi"
    if multi and longest > places:
        raise Problem(
            f"max_his_len: {places} places cannot hold lists of {longest}, which metrics asks of decoding: multi"
        )


def check_joint(cfg: Config) -> None:
    """Problem when joint training cannot be had as asked."""
    if QuantizerOptions not in cfg:
        return
    q, gradient = cfg[QuantizerOptions], settings.flat(cfg)["gradient"]
    if cfg[PriorOptions].label_prior != "none" and (q.assignment_forward == "soft" or gradient == "detached"):
        raise Problem(
            "label_prior: is a gradient of hard labels that reaches the codebooks; it cannot go with gradient: "
            "detached or assignment_forward: soft"
        )
    if gradient == "end_to_end" and settings.flat(cfg)["code_loss_weight"] == 0:
        raise Problem(
            "code_loss_weight: 0 leaves nothing of the recommendation loss to train on; raise it, or for a tokenizer "
            "that does not learn from it set gradient: detached"
        )
    if cfg[SearchOptions].legal_softmax and q.assignment_forward not in ("history", "cached"):
        raise Problem(
            f"legal_softmax: a target drawn anew (assignment_forward: {q.assignment_forward}) may be a SID "
            "that no item has; use assignment_forward: history or cached"
        )
    if q.deterministic_assignment == "sinkhorn" and cfg[TrainOptions].gradient_accumulation_steps > 1:
        raise Problem(
            "deterministic_assignment: sinkhorn balances whole batches; set gradient_accumulation_steps: 1 or "
            "deterministic_assignment: argmax"
        )
    linears = len(cfg[RQVAEOptions].layers) + 1 if RQVAEOptions in cfg else q.freeze_id_encoder_layers
    if q.freeze_id_encoder_layers > linears:
        raise Problem(
            f"freeze_id_encoder_layers: {q.freeze_id_encoder_layers}, but the encoder has {linears} linear layers"
        )
