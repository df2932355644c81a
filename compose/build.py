"""The model of a configuration, from data and a pre-trained tokenizer."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import settings
from compose.configure import build
from compose.parts import BASELINES, FROZEN, ITEM_MODELS, JOINT, NETWORKS, TOKENIZERS, MethodOptions, own_groups
from data import within
from joint.moving import JointMethod
from metrics import EvalOptions, cutoff
from model import GenerativeModel, SidParts
from readers.dataset import Dataset, read_embeddings
from readers.splits import DataOptions
from recommenders.base import Model
from recommenders.diffusion import FineTuningOptions
from recommenders.tokens import TokenNetwork
from runs.exported import earlier
from runs.folder import RunOptions
from settings import Config
from sids import collisions, lengths
from sids.behaviour import BehaviourOptions
from sids.checkpoint import PretrainOptions, Recipe, load_state
from sids.cut import check_usable, codes_of
from sids.fit import is_made, pretrain
from sids.precomputed import GivenOptions
from sids.search import SearchOptions
from sids.table import SidOptions, SidTable, SidVocabulary, by_count, end_tokens
from sids.tokenizer import CodeOptions, Source
from utils import Problem, digest, is_file, load_weights, log, one_line, shown
from vq import RQVAEOptions

# ---------------------------------------------------------------- models from data


def reads_content(cfg: Config) -> bool:
    """Does the method need content embeddings?"""
    return CodeOptions in cfg and not cfg[CodeOptions].given


def given_sids(cfg: Config, data: Dataset) -> SidTable:
    """The semantic IDs of a run whose options name a file of them."""
    found: SidTable = TOKENIZERS[str(cfg[MethodOptions].tokenizer)].sids(cfg[CodeOptions], data)
    return found


def held(path: Path) -> list[Path]:
    """A file, or the files of an exported folder; nothing where nothing is."""
    try:
        return [path] if is_file(path) else sorted(p for p in path.iterdir() if is_file(p))
    except (OSError, ValueError):
        return []


def named_files(cfg: Config) -> dict[str, dict[str, str]]:
    """Option -> name and hash of the file that it names, but for the data's own (`Dataset.hash`): another content under
    the same name is another run. Who reads the file says what is wrong with it.
    """
    parts = [s for s in cfg.sections.values() if not isinstance(s, DataOptions | RunOptions)]
    marked = {k: getattr(s, k) for s in parts for k, f in settings.fields_of(type(s)).items() if f.metadata["path"]}
    named = {k: Path(v) for k, v in marked.items() if v is not None}
    return {k: {"file": path.name, "hash": digest(*held(path))} for k, path in named.items()}


def check_named(cfg: Config, data: Dataset) -> None:
    """Problem when a tokenizer, semantic IDs or a network that the options name cannot be used."""
    if CodeOptions in cfg and cfg[CodeOptions].given:
        given_sids(cfg, data)
    elif CodeOptions in cfg and cfg[CodeOptions].rqvae_path is not None:
        tokenizer_of(cfg, data)
    if CodeOptions in cfg and not cfg[CodeOptions].variable_length:
        with torch.random.fork_rng([]):  # what is made here draws nothing of the run's
            network_of(cfg, data.n_items, vocabulary_of(cfg, data.n_items)).begin()


def check_content(cfg: Config, data: Dataset) -> Dataset:
    """The data as the method may use them: content embeddings that it needs must be what the options say
    (Problem); unusable ones beside a method that needs none are left out with a warning.
    """
    check_lists(cfg, data.n_items)
    if reads_content(cfg):
        if not cfg[CodeOptions].variable_length:  # how long unlike ones become is not known yet
            check_bits(vocabulary_of(cfg, data.n_items))
        read_embeddings(data)
        return data
    if data.embedding_path is not None:
        try:
            read_embeddings(data)
        except Problem as e:
            name = cfg[MethodOptions].method
            log.warning(f"{e}; {name} needs no embeddings and continues without the content baseline")
            return replace(data, embedding_path=None)
    return data


def baselines_of(data: Dataset) -> list[str]:
    """The baselines without training that the data allow: content neighbours need embeddings."""
    return [name for name in BASELINES if name != "content" or data.embedding_path is not None]


def recipe_of(cfg: Config) -> Recipe:
    """What the tokenizer of a run is made by."""
    name = str(cfg[MethodOptions].tokenizer)
    loop = next((part for part in cfg.sections.values() if isinstance(part, PretrainOptions)), None)
    return Recipe(name, TOKENIZERS[name], cfg[CodeOptions], loop, cfg[DataOptions].seed)


def tokenizer_path(cfg: Config, data: Dataset) -> Path:
    """Where the checkpoint of a run's tokenizer lies: equal options, seed and data share it."""
    folder = Path(cfg[RunOptions].output_dir) / data.name / recipe_of(cfg).folder(data.hash)
    return folder / "best_collision_model.pth"


def train_tokenizer(cfg: Config, data: Dataset) -> Path:
    """Pre-train the tokenizer of a run unless it is there; its checkpoint. Semantic IDs that are given need none."""
    if cfg[CodeOptions].given:
        return Path(str(cfg[CodeOptions].sid_path))  # type: ignore[attr-defined]
    path = tokenizer_path(cfg, data)
    if not is_made(path):
        pretrain(recipe_of(cfg), path, Source.of(data, vectors_of(cfg[CodeOptions], data)))
    return path


def vectors_of(cfg: CodeOptions, data: Dataset) -> np.ndarray | None:
    """Item vectors [N, V] of the SASRec that `vectors_from` names; Problem when it knows other items or targets."""
    path = cfg.vectors_from if isinstance(cfg, BehaviourOptions) else None
    if path is None:
        return None
    state = earlier("vectors_from", path, data)
    method = state["config"].get("method")
    if method != "sasrec":
        raise Problem(f"vectors_from: {path} is of {shown(method)}; name the best_model.pth of a sasrec run")
    table = state["model"].get("encoder.items.weight")
    if not isinstance(table, Tensor) or table.dim() != 2 or not table.is_floating_point():
        raise Problem(f"vectors_from: {path} holds no item vectors")
    if len(table) != data.n_items + 1 or not torch.isfinite(table).all():
        raise Problem(f"vectors_from: {path} holds no finite vector for each of the {data.n_items} items")
    log.info(f"behaviour: {table.shape[1]} dimensions of the item vectors in {path}")
    found: np.ndarray = table[1:].float().numpy()
    return found


def length_file(cfg: Config, path: Path) -> Path:
    """Where the figures of a tokenizer's SIDs lie, beside its checkpoint."""
    c = cfg[CodeOptions]
    cut = [] if c.target_length is None else [c.target_length]
    group = [] if c.max_group == CodeOptions().max_group else ["group", c.max_group]
    return path.with_name("-".join(map(str, ["sids", *cut, *group])) + ".json")


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
        path = Path(c.rqvae_path) if c.rqvae_path else tokenizer_path(cfg, data)
    if not is_file(path):
        raise Problem(
            f"{path}: no pre-trained tokenizer; run scripts/pretrain.py with the same options, or set rqvae_path"
        )
    if is_file(path.with_name("last.pth")) and not is_file(path.with_name("report.json")):
        raise Problem(f"{path}: its pre-training has not ended; continue it by the same scripts/pretrain.py command")
    check_content(cfg, data)
    model = empty_tokenizer(cfg, read_embeddings(data).shape[1])
    load_state(path, model, name)
    return model


def empty_tokenizer(cfg: Config, n_input: int) -> Any:
    """The tokenizer of a run before it has learned anything, in the form that the training needs."""
    m = cfg[MethodOptions]
    if m.joint:
        return JOINT[m.method].tokenizer_of(cfg[RQVAEOptions], n_input, cfg[DataOptions].seed, *own_groups(cfg))
    return TOKENIZERS[str(m.tokenizer)](cfg[CodeOptions], n_input)


def vocabulary_of(cfg: Config, n_items: int, code_NT: torch.Tensor | None = None) -> SidVocabulary:
    """What SIDs are spelled with; code_NT: the catalogue's codes, -1 after an end, where they may differ in length.

    Where they turn out equal all is as for a tokenizer that has no more levels.
    """
    c, rule = cfg[CodeOptions], cfg[SidOptions].collision
    sizes = tuple(c.num_emb_list)
    if not c.variable_length or code_NT is None:
        return SidVocabulary(sizes, end_tokens(rule, sizes, n_items))
    length_N = (code_NT >= 0).sum(1)
    sizes = sizes[: max(1, int(length_N.max()))]
    even = bool((length_N == len(sizes)).all())
    return check_bits(SidVocabulary(sizes, end_tokens(rule, sizes, n_items) if even else c.max_group, even))


def network_of(cfg: Config, n_items: int, vocabulary: SidVocabulary) -> TokenNetwork:
    """The network over semantic IDs, untrained."""
    kind = NETWORKS[str(cfg[MethodOptions].recommender)]
    made: TokenNetwork = kind(
        cfg[kind.Options], vocabulary.vocabulary, cfg[DataOptions].max_his_len, n_items, not vocabulary.even
    )
    return made


def generative(cfg: Config, n_items: int, vocabulary: SidVocabulary, tokenizer: Any = None) -> GenerativeModel:
    """The untrained model of a method over semantic IDs; tokenizer: of a joint method."""
    m, network = cfg[MethodOptions], network_of(cfg, n_items, vocabulary)
    made = SidParts(network, n_items, vocabulary, cfg[SidOptions], cfg[SearchOptions])
    return JOINT[m.method](made, tokenizer, *own_groups(cfg)) if m.joint else FROZEN[m.method](made)


class Built(NamedTuple):
    """A model to train, and the tokenizer behind its fixed SIDs where it has one."""

    model: Model
    tokenizer: Any = None


def build_model(cfg: Config, data: Dataset) -> Built:
    """The untrained model of a run, with the SIDs of its pre-trained tokenizer where it has one."""
    m = cfg[MethodOptions]
    if m.method in ITEM_MODELS:
        return Built(finetuned(cfg, data) if FineTuningOptions in cfg else empty_model(cfg, data.n_items))
    if m.joint:
        tokenizer = tokenizer_of(cfg, data)
        joint = generative(cfg, data.n_items, vocabulary_of(cfg, data.n_items), tokenizer)
        assert isinstance(joint, JointMethod)
        joint.recommender.begin()
        source = Source.of(data)
        train = within(source.train, cfg[DataOptions].history_tokens, joint.item_tokens)
        joint.attach(source._replace(train=train), cfg[DataOptions].max_his_len)
        return Built(joint)
    tokenizer, sids = catalogue_sids(cfg, data)
    model = generative(cfg, data.n_items, vocabulary_of(cfg, data.n_items, sids.code_NT))
    check_ends(sids, model.ends)
    model.recommender.begin()
    model.set_codes(sids.code_NT, data.popularity[1:] if cfg[CodeOptions].variable_length else None, sids.end_N)
    if GivenOptions in cfg and (start := cfg[GivenOptions].start_from) is not None:
        warm_start(start, model, data)
    if model.order_N is not None:
        model.order_N.copy_(torch.from_numpy(by_count(data.popularity[1:]) + 1))
    return Built(model, tokenizer)


def catalogue_sids(cfg: Config, data: Dataset) -> tuple[Any, SidTable]:
    """(tokenizer at rest, None where there is none; what it, or a file, says of the catalogue).

    Dedup tokens are those of a file where the option `collision` says `suffix`; else they have to be counted yet.
    """
    c, rule = cfg[CodeOptions], cfg[SidOptions]
    if c.given:
        sids = given_sids(cfg, data)
        tokenizer, code_NT, end_N = None, sids.code_NT, sids.end_N if rule.collision == "suffix" else None
    else:
        content_ND, tokenizer, end_N = read_embeddings(data), tokenizer_of(cfg, data).eval(), None
        if c.variable_length:
            code_NT = codes_of(tokenizer, content_ND, data.popularity[1:]).code_NT
        else:
            code_NT = tokenizer.encode(content_ND)
            code_NT = collisions.apply(rule, tokenizer, content_ND, code_NT, cfg[DataOptions].seed)
    if c.variable_length:
        check_usable(code_NT, c)
    return tokenizer, SidTable(code_NT, end_N, tuple(c.num_emb_list))


def check_ends(sids: SidTable, ends: int) -> None:
    """Problem when dedup tokens that are known already are more than there may be."""
    if sids.end_N is not None and (largest := int(sids.end_N.max())) >= ends:
        raise Problem(
            f"sid_path: a dedup token is {largest}, above the largest possible one, {ends - 1}; raise max_group where "
            "lengths differ, else the last number of num_emb_list, or set collision: item"
        )


def empty_model(cfg: Config, n_items: int, n_input: int = 0, code_NT: torch.Tensor | None = None) -> Model:
    """A model that only waits for a state; n_input: width of the content embeddings, for joint models; code_NT: the
    catalogue's codes, which tell the sizes where they may differ in length.
    """
    m = cfg[MethodOptions]
    if m.method in ITEM_MODELS:
        kind = ITEM_MODELS[m.method]
        made: Model = kind(cfg[kind.Options], n_items, cfg[DataOptions].max_his_len, cfg[DataOptions].seed)
        return made
    tokenizer = empty_tokenizer(cfg, n_input) if m.joint else None
    return generative(cfg, n_items, vocabulary_of(cfg, n_items, code_NT), tokenizer)


def warm_start(path: str, model: GenerativeModel, data: Dataset) -> None:
    """Give a network over SIDs the weights of an earlier one, whose codes' names its SIDs have."""
    held = earlier("start_from", path, data)["model"]
    try:
        load_weights(model.recommender, {
            k.removeprefix("recommender."): v for k, v in held.items() if k.startswith("recommender.")
        })  # fmt: skip
    except RuntimeError as e:
        raise Problem(
            f"start_from: {path} has other sizes; use its recommender, num_emb_list and widths ({one_line(e)})"
        ) from None
    model.pretrained = True


def finetuned(cfg: Config, data: Dataset) -> Model:
    """The second stage's model with the weights of the first; Problem when that is none of these."""
    path = cfg[FineTuningOptions].sft_from
    if path is None:
        raise Problem("sft_from: name the best_model.pth of a diffsasrec run to fine-tune")
    state = earlier("sft_from", path, data)
    saved = state["config"]
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


# ---------------------------------------------------------------- sizes


def check_lists(cfg: Config, n_items: int) -> None:
    """Problem when lists are longer than the catalogue.

    Lists up to the usual lengths are allowed to be longer: a small catalogue is no mistake.
    """
    longest = max(cfg[EvalOptions].metrics, key=cutoff)
    if cutoff(longest) > max(n_items, USUAL):
        raise Problem(f"metrics: {longest} asks for longer lists than the catalogue of {n_items} items has; lower it")
    beams = cfg[SearchOptions].num_beams if SearchOptions in cfg else 0
    most = max(n_items, USUAL if SearchOptions in cfg and cfg[SearchOptions].constrained else MANY)
    if beams > most:
        raise Problem(f"num_beams: {beams} beams are more than the catalogue of {n_items} items can fill; lower it")


def list_length(cfg: Config) -> int:
    """Items of the longest list that metrics and beams ask for."""
    beams = cfg[SearchOptions].num_beams if SearchOptions in cfg else 0
    return max(beams, *map(cutoff, cfg[EvalOptions].metrics))


def check_bits(vocabulary: SidVocabulary) -> SidVocabulary:
    """Problem when its SIDs have no room in 64 bits, as search and trie number them."""
    if math.prod(vocabulary.vocabulary) >= 2**63:
        raise Problem(
            f"num_emb_list: semantic IDs of {' x '.join(map(str, vocabulary.vocabulary))} tokens do not fit into 63 "
            "bits; use fewer levels or smaller ones"
        )
    return vocabulary


USUAL, MANY = 20, 1000  # beams; what an unconstrained search may have beside a small catalogue
