"""The one place that knows every part by name: a new tokenizer, network or model is a file and a line here.

A run is composed of a tokenizer, a recommender and the way they are trained, or of a recommender over items
alone; `method` names such compositions. Parts are imported when a run first needs them.
"""

import difflib
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

import settings
from metrics import EvalOptions, cutoff
from prior import PriorOptions
from readers.dataset import Dataset, read_embeddings
from readers.splits import DataOptions
from recommenders.protocol import Ranker, Recommender, TokenNetwork
from retired import RETIRED, upgraded
from runs import memory
from runs.exported import read_state
from runs.folder import RunOptions
from settings import Config, option
from sids import collisions, lengths
from sids.behaviour import side_width
from sids.cut import check_usable, codes_of
from sids.fit import FitOptions, checkpoint_path, load_state, pretrain
from sids.search import SearchOptions
from sids.table import SidOptions, SidTable, Spelling, end_tokens
from sids.tokenizer import CodeOptions, is_learned
from trainer import TrainOptions
from uncertainty import UncertaintyOptions
from utils import (
    Problem,
    check_weights,
    is_file,
    load_weights,
    log,
    one_line,
    quoted,
    shortened,
    shown,
)
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
MODELS = {"joint": "model:JointModel", "frozen": "model:GenerativeModel"}
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
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
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
    longest, m = max(cutoff(name) for name in cfg[EvalOptions].metrics), cfg[MethodOptions]
    if SearchOptions in cfg and longest > cfg[SearchOptions].num_beams:
        raise Problem(
            f"num_beams: {cfg[SearchOptions].num_beams} is below the largest cut-off of metrics, {longest}; raise it"
        )
    places = cfg[DataOptions].max_his_len
    multi = m.method.startswith("diffsasrec") and settings.flat(cfg)["decoding"] == "multi"
    if multi and longest > places:
        raise Problem(
            f"max_his_len: {places} places cannot hold lists of {longest}, which metrics asks of decoding: multi"
        )


def check_sizes(cfg: Config, n_items: int, n_input: int = 0) -> None:
    """Problem, before anything is made, when lists are longer than the catalogue or nothing has room for the model.

    Lists up to the usual lengths are allowed to be longer: a small catalogue is no mistake.
    """
    longest = max(cfg[EvalOptions].metrics, key=cutoff)
    if cutoff(longest) > max(n_items, USUAL):
        raise Problem(f"metrics: {longest} asks for longer lists than the catalogue of {n_items} items has; lower it")
    beams = cfg[SearchOptions].num_beams if SearchOptions in cfg else 0
    most = max(n_items, USUAL if SearchOptions in cfg and cfg[SearchOptions].constrained else MANY)
    if beams > most:
        raise Problem(f"num_beams: {beams} beams are more than the catalogue of {n_items} items can fill; lower it")
    k = max(beams, cutoff(longest))
    memory.refuse_hopeless(k * (n_items + 1) + 2 * k * k, f"lists of {k} items", "lower metrics and num_beams")
    remedy = "lower its widths and layers, num_emb_list or max_his_len"
    try:
        numbers = sum(math.prod(size) for size in tensor_sizes(cfg, n_items, n_input).values())
    except (RuntimeError, OverflowError, TypeError) as e:  # a tensor of more bytes than an address has bits for
        reason = shortened(" ".join(str(e).split()))
        raise Problem(f"the model's weights have no room in any memory ({reason}); {remedy}") from None
    memory.refuse_hopeless(memory.FLOAT * numbers, "the model's weights", remedy)


USUAL, MANY = 20, 1000  # beams; what an unconstrained search may have beside a small catalogue


def tensor_sizes(
    cfg: Config, n_items: int, n_input: int, code_NT: torch.Tensor | None = None
) -> dict[str, tuple[int, ...]]:
    """Sizes of the tensors that a run's parts learn, by their names in its model, without making them."""
    parts: dict[str, Any]
    with torch.device("meta"):
        if cfg[MethodOptions].method in ITEM_MODELS:
            parts = {"": empty_model(cfg, n_items)}
        else:
            parts = {"recommender.": network_of(cfg, n_items, spelling_of(cfg, n_items, code_NT))}
            if cfg[MethodOptions].training == "joint" and n_input:
                parts["tokenizer."] = empty_tokenizer(cfg, n_input)
    return {f"{name}{k}": tuple(v.shape) for name, p in parts.items() for k, v in p.named_parameters()}


def check_joint(cfg: Config) -> None:
    """Problem when joint training cannot be had as asked."""
    if QuantizerOptions not in cfg:
        return
    q, gradient = cfg[QuantizerOptions], settings.flat(cfg)["gradient"]
    if cfg[PriorOptions].label_prior != "none" and (q.assignment_forward == "soft" or gradient == "detached"):
        raise Problem(
            "label_prior: is a gradient of hard labels that reaches the codebooks; it cannot go with gradient: "
            "detached "
            "or assignment_forward: soft"
        )
    if cfg[SearchOptions].legal_softmax and q.assignment_forward not in ("history", "cached"):
        raise Problem(
            f"legal_softmax: a target drawn anew (assignment_forward: {q.assignment_forward}) may be a SID "
            "that no item "
            "has; use assignment_forward: history or cached"
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


# ---------------------------------------------------------------- models from data


def reads_content(cfg: Config) -> bool:
    """Does the method need content embeddings?"""
    return CodeOptions in cfg and not cfg[CodeOptions].given


def given_sids(cfg: Config, data: Dataset) -> SidTable:
    """The semantic IDs of a run whose options name a file of them."""
    found: SidTable = part(TOKENIZERS[str(cfg[MethodOptions].tokenizer)]).sids(cfg[CodeOptions], data)
    return found


def given_stamp(cfg: Config) -> dict[str, Any]:
    """Name and hash of that file, nothing for other runs: another content under the same name is another run."""
    if CodeOptions not in cfg or not cfg[CodeOptions].given:
        return {}
    return {"sids": part(TOKENIZERS[str(cfg[MethodOptions].tokenizer)]).stamp(cfg[CodeOptions])}


def check_named(cfg: Config, data: Dataset) -> None:
    """Problem when a tokenizer, or semantic IDs, that the options name cannot be used."""
    if CodeOptions in cfg and cfg[CodeOptions].given:
        given_sids(cfg, data)
    elif CodeOptions in cfg and cfg[CodeOptions].rqvae_path is not None:
        tokenizer_of(cfg, data)


def check_content(cfg: Config, data: Dataset) -> Dataset:
    """The data as the method may use them: content embeddings that it needs must be what the options say
    (Problem); unusable ones beside a method that needs none are left out with a warning.
    """
    if reads_content(cfg):
        width, content_ND = cfg[CodeOptions].semantic_hidden_size, read_embeddings(data)
        if width is not None and width != content_ND.shape[1]:
            raise Problem(f"semantic_hidden_size: {width}, but {data.embedding_path} has width {content_ND.shape[1]}")
        check_sizes(cfg, data.n_items, content_ND.shape[1])
        return data
    check_sizes(cfg, data.n_items)
    if data.embedding_path is not None:
        try:
            read_embeddings(data)
        except Problem as e:
            log.warning(f"{e}; {cfg[MethodOptions].method} needs no embeddings and goes on without the content floor")
            return replace(data, embedding_path=None)
    return data


def floors_of(data: Dataset) -> list[str]:
    """The floors that the data allow: content neighbours need embeddings."""
    return [name for name in FLOORS if name != "content" or data.embedding_path is not None]


def train_tokenizer(cfg: Config, data: Dataset) -> Path:
    """Pre-train the tokenizer of a run unless it is there; its checkpoint. Semantic IDs that are given need none."""
    if cfg[CodeOptions].given:
        return Path(str(cfg[CodeOptions].sid_path))  # type: ignore[attr-defined]
    name = str(cfg[MethodOptions].tokenizer)
    return pretrain(cfg, name, part(TOKENIZERS[name]), data)


def length_file(cfg: Config, path: Path) -> Path:
    """Where the figures of a tokenizer's SIDs lie, beside its checkpoint."""
    c = cfg[CodeOptions]
    return path.with_name("sids.json" if c.target_length is None else f"sids-{c.target_length}.json")


def sid_figures(cfg: Config, data: Dataset, path: Path) -> dict[str, Any]:
    """What the SIDs by the tokenizer of a checkpoint cost and tell, also as a table in the log."""
    tokenizer = tokenizer_of(cfg, data, path).eval()
    count_N = data.popularity[1:]
    code_NT, error_NT = codes_of(tokenizer, read_embeddings(data), count_N)
    found = lengths.figures(code_NT, cfg[CodeOptions].num_emb_list, count_N, error_NT)
    lengths.log_table(found)
    return found


def tokenizer_of(cfg: Config, data: Dataset, path: Path | None = None) -> Any:
    """The pre-trained tokenizer: of `path`, of `rqvae_path`, or what pre-training left for these options."""
    name, c = str(cfg[MethodOptions].tokenizer), cfg[CodeOptions]
    if path is None:
        path = Path(c.rqvae_path) if c.rqvae_path else checkpoint_path(cfg, name, data)
    if not is_file(path):
        raise Problem(
            f"{path}: no pre-trained tokenizer; run scripts/pretrain.py with the same options, or set rqvae_path"
        )
    check_content(cfg, data)
    model = empty_tokenizer(cfg, read_embeddings(data).shape[1])
    load_state(path, model, name)
    return model


def empty_tokenizer(cfg: Config, n_input: int) -> Any:
    """The tokenizer of a run before it has learned anything, in the form that the training needs."""
    name, c = str(cfg[MethodOptions].tokenizer), cfg[CodeOptions]
    if cfg[MethodOptions].training == "joint":
        return part(JOINT[name])(c, cfg[QuantizerOptions], n_input, cfg[DataOptions].seed)
    return part(TOKENIZERS[name])(c, n_input)


def spelling_of(cfg: Config, n_items: int, code_NT: torch.Tensor | None = None) -> Spelling:
    """What SIDs are spelled with; code_NT: the catalogue's codes, -1 after an end, where they may differ in length.

    Where they turn out equal all is as for a tokenizer that has no more levels.
    """
    c, rule = cfg[CodeOptions], cfg[SidOptions].collision
    sizes = tuple(c.num_emb_list)
    if not c.uneven or code_NT is None:
        return Spelling(sizes, end_tokens(rule, sizes, n_items))
    length_N = (code_NT >= 0).sum(1)
    sizes = sizes[: max(1, int(length_N.max()))]
    even = bool((length_N == len(sizes)).all())
    return Spelling(sizes, end_tokens(rule, sizes, n_items) if even else c.max_group, even)


def network_of(cfg: Config, n_items: int, spelling: Spelling) -> TokenNetwork:
    """The network over semantic IDs, untrained."""
    kind = part(NETWORKS[str(cfg[MethodOptions].recommender)])
    made: TokenNetwork = kind(
        cfg[kind.Options], spelling.vocabulary, cfg[DataOptions].max_his_len, n_items, not spelling.even
    )
    return made


class Built(NamedTuple):
    """A model to train, and the tokenizer behind its fixed SIDs where it has one."""

    model: Recommender
    tokenizer: Any = None


def build_model(cfg: Config, data: Dataset) -> Built:
    """The untrained model of a run, with the SIDs of its pre-trained tokenizer where it has one."""
    m = cfg[MethodOptions]
    if m.method == "diffsasrec_sft":
        return Built(finetuned(cfg, data))
    if m.method in ITEM_MODELS:
        return Built(empty_model(cfg, data.n_items))
    if m.training == "joint":
        tokenizer = tokenizer_of(cfg, data)
        spelling = spelling_of(cfg, data.n_items)
        joint = part(MODELS["joint"])(cfg, tokenizer, network_of(cfg, data.n_items, spelling), data.n_items, spelling)
        joint.attach(read_embeddings(data))
        return Built(joint)
    tokenizer, sids = catalogue_sids(cfg, data)
    model = empty_model(cfg, data.n_items, code_NT=sids.code_NT)
    check_ends(sids, model.ends)  # type: ignore[attr-defined]
    model.set_codes(sids.code_NT, data.popularity[1:] if cfg[CodeOptions].uneven else None, sids.end_N)  # type: ignore[attr-defined]
    if (start := settings.flat(cfg).get("start_from")) is not None:
        warm_start(start, model, data)
    if cfg[SidOptions].shared and cfg[SidOptions].group_order == "popularity":
        order_N = np.argsort(-data.popularity[1:], kind="stable") + 1
        model.order_N.copy_(torch.from_numpy(order_N))  # type: ignore[attr-defined]
    return Built(model, tokenizer)


def catalogue_sids(cfg: Config, data: Dataset) -> tuple[Any, SidTable]:
    """(tokenizer at rest, None where there is none; what it, or a file, says of the catalogue).

    End tokens are those of a file where the option `collision` says `suffix`; else they have to be counted yet.
    """
    c, rule = cfg[CodeOptions], cfg[SidOptions]
    if c.given:
        sids = given_sids(cfg, data)
        tokenizer, code_NT, end_N = None, sids.code_NT, sids.end_N if rule.collision == "suffix" else None
    else:
        content_ND, tokenizer, end_N = read_embeddings(data), tokenizer_of(cfg, data).eval(), None
        if c.uneven:
            code_NT = codes_of(tokenizer, content_ND, data.popularity[1:]).code_NT
        else:
            code_NT = tokenizer.encode(content_ND)
            code_NT = collisions.apply(rule, tokenizer, content_ND, code_NT, cfg[DataOptions].seed)
    if c.uneven:
        check_usable(code_NT, c)
    return tokenizer, SidTable(code_NT, end_N, tuple(c.num_emb_list))


def check_ends(sids: SidTable, ends: int) -> None:
    """Problem when end tokens that are known already are more than there may be."""
    if sids.end_N is not None and (largest := int(sids.end_N.max())) >= ends:
        raise Problem(
            f"sid_path: an end token is {largest}, the largest there may be is {ends - 1}; raise max_group where "
            "lengths differ, else the last number of num_emb_list, or set collision: item"
        )


def empty_model(cfg: Config, n_items: int, n_input: int = 0, code_NT: torch.Tensor | None = None) -> Recommender:
    """A model that only waits for a state; n_input: width of the content embeddings, for joint models; code_NT: the
    catalogue's codes, which tell the sizes where they may differ in length.
    """
    m = cfg[MethodOptions]
    if m.method in ITEM_MODELS:
        kind = part(ITEM_MODELS[m.method])
        made: Recommender = kind(cfg[kind.Options], n_items, cfg[DataOptions].max_his_len, cfg[DataOptions].seed)
        return made
    spelling = spelling_of(cfg, n_items, code_NT)
    if m.training == "joint":
        tokenizer = empty_tokenizer(cfg, n_input)
        made = part(MODELS["joint"])(cfg, tokenizer, network_of(cfg, n_items, spelling), n_items, spelling)
    else:
        made = part(MODELS["frozen"])(cfg, network_of(cfg, n_items, spelling), n_items, spelling)
    return made


def earlier(key: str, path: str, data: Dataset) -> dict[str, Any]:
    """The checkpoint that an option names to go on from; Problem when it is of other data."""
    state = read_state(path)
    check_checkpoint(path, state)
    if state["items"] != data.catalogue.ids:
        raise Problem(f"{key}: {path} was trained on another catalogue")
    if state.get("split", data.split_hash) != data.split_hash:
        raise Problem(f"{key}: {path} was trained on other interactions or another split; it may know the targets")
    return state


def warm_start(path: str, model: Recommender, data: Dataset) -> None:
    """Give a network over SIDs the weights of an earlier one, whose codes' names its SIDs have."""
    held = earlier("start_from", path, data)["model"]
    try:
        load_weights(model.recommender, {  # type: ignore[attr-defined]
            k.removeprefix("recommender."): v for k, v in held.items() if k.startswith("recommender.")
        })  # fmt: skip
    except RuntimeError as e:
        raise Problem(
            f"start_from: {path} has other sizes; use its recommender, num_emb_list and widths ({one_line(e)})"
        ) from None
    model.pretrained = True  # type: ignore[misc]


def finetuned(cfg: Config, data: Dataset) -> Recommender:
    """The second stage's model with the weights of the first; Problem when that is none of these."""
    path = settings.flat(cfg)["sft_from"]
    if path is None:
        raise Problem("sft_from: name the best_model.pth of a diffsasrec run to fine-tune")
    state = earlier("sft_from", path, data)
    saved = upgraded(state["config"])
    if saved.get("method") not in ("diffsasrec", "diffsasrec_sft"):
        kind = saved.get("method")
        raise Problem(f"sft_from: {path} is of {shown(kind)}; only a diffusion model (diffsasrec) can be fine-tuned")
    theirs = settings.sizeless(build(saved))
    for key, ours in settings.sizeless(cfg).items():
        if theirs[key] != ours:
            raise Problem(f"sft_from: {path} was trained with {key} {shown(theirs[key])}; set --{key} so")
    model = empty_model(cfg, data.n_items)
    try:
        load_weights(model, state["model"])
    except RuntimeError as e:
        raise Problem(
            f"sft_from: {path} has other sizes; use its hidden_units, num_blocks, max_his_len ({one_line(e)})"
        ) from None
    return model


# ---------------------------------------------------------------- models from checkpoints


class Restored(NamedTuple):
    cfg: Config
    model: Recommender
    state: dict[str, Any]  # the whole checkpoint


def restore(path: str | Path, overrides: Sequence[str] = ()) -> Restored:
    """The model of a `best_model.pth`, or of an exported folder, as it was trained; overrides: options that may differ
    from then.
    """
    state = read_state(path)
    check_checkpoint(path, state)
    saved = upgraded(state["config"])
    try:
        trained = build(saved)
    except Problem as e:
        raise Problem(f"{path}: holds a wrong configuration: {e}") from None
    given = parse_overrides(overrides)
    cfg = build({**trained.aside, **settings.flat(trained)}, given)
    for key, before in settings.sizeless(trained).items():
        if settings.sizeless(cfg).get(key) != before:
            raise Problem(f"{key}: {path} was trained with {before!r}, which cannot be changed now")
    try:
        n_items, n_input = sizes_of(cfg, state["model"])
        if n_items != len(state["items"]):
            raise Problem(f"{path}: its model knows {n_items} items, its list {len(state['items'])}")
        check_sizes(cfg, n_items, n_input)
        code_NT = state["model"].get("code_NT")
        check_plausible(path, tensor_sizes(cfg, n_items, n_input, code_NT), state["model"])
        model = empty_model(cfg, n_items, n_input, code_NT)
        load_weights(model, state["model"])
    except (RuntimeError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise Problem(f"{path}: does not fit its configuration ({one_line(e)}); use another checkpoint") from None
    check_weights(path, model.state_dict())
    return Restored(cfg, model.eval(), state)


def sizes_of(cfg: Config, model: dict[str, Any]) -> tuple[int, int]:
    """(items, width of the content embeddings) of a saved model; 0 where it holds none."""
    if cfg[MethodOptions].method in ITEM_MODELS:
        return len(model["encoder.items.weight"]) - (1 if cfg[MethodOptions].method == "sasrec" else 2), 0
    first = model.get("tokenizer.encoder.mlp_layers.1.weight")
    width = 0 if first is None else first.shape[1] - side_width(cfg[CodeOptions])
    return len(model["sid_NL"] if "sid_NL" in model else model["code_NT"]), width


def check_plausible(path: str | Path, sizes: Mapping[str, tuple[int, ...]], model: Mapping[str, Any]) -> None:
    """Problem, before anything is made, when a configuration asks for other tensors than its file holds.

    Names of earlier versions are left to the models; but what the file lacks must not be most of the model.
    """
    held = {k: tuple(v.shape) for k, v in model.items() if isinstance(v, torch.Tensor)}
    for name, size in sizes.items():
        if held.get(name, size) != size:
            what = f"{name} is {list(held[name])} in the file and {list(size)} by its configuration"
            raise Problem(f"{path}: does not fit its configuration ({what}); use another checkpoint")
    lacking = {name: size for name, size in sizes.items() if name not in held}
    if sum(map(math.prod, lacking.values())) > sum(map(math.prod, held.values())):
        what = f"{len(lacking)} tensors are missing, first {next(iter(lacking))}"
        raise Problem(f"{path}: does not fit its configuration ({what}); use another checkpoint")


def check_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Problem when a file is not a checkpoint of a training."""
    if missing := [k for k in ("model", "config", "items", "titles") if k not in state]:
        raise Problem(f"{path}: not a checkpoint of main.py, {missing[0]!r} is missing")
    ids, titles = state["items"], state["titles"]
    lists = isinstance(ids, list) and isinstance(titles, list) and len(ids) == len(titles)
    if not lists or not all(isinstance(text, str) for text in [*ids, *titles]):
        raise Problem(f"{path}: not a checkpoint of main.py, its items are not a list of names")
    if len(set(ids)) != len(ids):
        raise Problem(f"{path}: names an item twice; use another checkpoint")
    if not isinstance(state["config"], dict) or not isinstance(state["model"], dict):
        raise Problem(f"{path}: not a checkpoint of main.py, its config or model is not a dictionary")
