"""Typed options: flat names in one YAML file, `--key=value` on the command line.

Each section below belongs to one component; an option's name is unique over all of them. A key that
no section of a command declares, a key given twice, a wrong type or a value out of range stops the
run before anything is loaded.
"""

import dataclasses
import difflib
import math
import reprlib
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from utils import Problem

S = TypeVar("S")


def option(default: Any, meaning: str, *, ge: float | None = None, gt: float | None = None,
           le: float | None = None) -> Any:  # fmt: skip
    """One option: default, meaning (shown by --help), and its closed (ge, le) or open (gt) range."""
    limits = {"ge": ge, "gt": gt, "le": le}
    meta = {"meaning": meaning, **{k: v for k, v in limits.items() if v is not None}}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=meta)
    return field(default=default, metadata=meta)


# fmt: off
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    dataset: str = option("demo", "name of the data set")
    data_path: str = option("./dataset", "folder that holds <dataset>/ or the data files themselves, or a .csv file")
    data_format: Literal["auto", "inter", "inter_splits", "jsonl", "json", "csv"] = option("auto", "layout of the interactions: one .inter, three .inter, .jsonl + .emb_map.json, .inter.json, .csv")
    users_col: str = option("UserId", "column of the users in a .csv file")
    items_col: str = option("ProductId", "column of the items in a .csv file")
    time_col: str = option("Timestamp", "column of the times in a .csv file, numbers")
    k_core: int = option(0, "leave out users and items with fewer interactions, until none is left; 0 = keep all", ge=0)
    split: Literal["leave_one_out", "time"] = option("leave_one_out", "test on each user's last item, or on their first known item after a point in time")
    time_quantile: float = option(0.95, "split: time: share of all interactions before that point", gt=0, le=1)
    reference: bool = option(False, "as DiffSASRec's program: its time split by groups of users, its transformer block, its multi-step decoder")
    test_size: float = option(0.2, "reference with split: time: share of the users that are tested", gt=0, le=0.9)
    semantic_emb_path: str | None = option(None, "content embeddings, .npy [items, D]; default: the only *.emb*.npy beside the data")
    map_path: str | None = option(None, "item token -> id map of the .jsonl layout; default <dataset>.emb_map.json")
    max_his_len: int = option(50, "longest history, in items", ge=1)
    short_users: Literal["refuse", "drop"] = option("refuse", "users with fewer than 3 interactions")
    seed: int = option(2020, "seed of everything random", ge=0, le=2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    num_emb_list: list[int] = option([256, 256, 256], "codes per level (K), one number a level (L)", ge=2)
    code_num: int | None = option(None, "K, where all levels are alike; must agree with num_emb_list", ge=2)
    code_length: int | None = option(None, "L + 1: learned levels and the suffix; must agree with num_emb_list", ge=2)
    semantic_hidden_size: int | None = option(None, "width D of the content embeddings; must agree with the file", ge=1)
    e_dim: int = option(256, "width d of latents and codebooks", ge=1)
    layers: list[int] = option([2048, 1024, 512], "hidden widths of the encoder MLP (the decoder mirrors them)", ge=1)
    beta: float = option(0.25, "weight of the commitment term in the VQ loss", ge=0)
    dist: Literal["l2", "cos", "dot"] = option("l2", "distance between residual and code")
    dropout_prob: float = option(0.0, "dropout in the tokenizer's MLPs", ge=0, le=0.9)
    sk_epsilons: list[float] = option([0.003, 0.003, 0.003], "entropy weight of Sinkhorn per level; 0 = arg-min", ge=0)
    sk_iters: int = option(50, "Sinkhorn iterations", ge=1)
    standardize_embeddings: bool = option(False, "centre the embeddings and divide by their standard deviation")

    def __post_init__(self) -> None:
        k, n = self.num_emb_list, len(self.num_emb_list)
        if not n:
            raise Problem("num_emb_list: needs at least one level")
        if self.code_num is not None and set(k) != {self.code_num}:
            raise Problem(f"code_num: {self.code_num} disagrees with num_emb_list {k}; drop one of the two")
        if self.code_length is not None and self.code_length != n + 1:
            raise Problem(f"code_length: {self.code_length} disagrees with num_emb_list {k} (levels + 1 suffix = {n + 1}); drop one of the two")
        if bad := [e for e in self.sk_epsilons if 0 < e < 0.0015]:
            raise Problem(f"sk_epsilons: {bad[0]} overflows; use 0 (arg-min) or at least 0.0015")
        if len(self.sk_epsilons) != n:
            raise Problem(f"sk_epsilons: one number a level, {n}, not {self.sk_epsilons}")


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    rqvae_epochs: int = option(10000, "most epochs of pre-training", ge=1)
    rqvae_patience: int = option(500, "stop after so many epochs without a lower collision rate", ge=1)
    rqvae_eval_step: int = option(50, "epochs between two looks at the collision rate", ge=1)
    rqvae_batch_size: int = option(1024, "items per step", ge=1)
    rqvae_lr: float = option(1e-3, "learning rate of pre-training", gt=0)
    rqvae_weight_decay: float = option(1e-4, "weight decay of pre-training", ge=0)
    rqvae_warmup_epochs: int = option(50, "epochs of linear warm-up", ge=0)
    rqvae_assignment: Literal["sinkhorn", "argmin"] = option("sinkhorn", "how pre-training assigns codes")
    quant_loss_weight: float = option(1.0, "weight w of the VQ loss beside the reconstruction", ge=0)
    kmeans_init: bool = option(True, "codebooks start from k-means on the first batch's residuals")
    kmeans_iters: int = option(100, "iterations of that k-means", ge=1)


@dataclass(frozen=True, kw_only=True)
class RecommenderOptions:
    encoder_layers: int = option(6, "layers of the encoder", ge=1)
    decoder_layers: int = option(6, "layers of the decoder", ge=1)
    d_model: int = option(128, "width h", ge=1)
    d_ff: int = option(512, "width of the feed-forward layers", ge=1)
    num_heads: int = option(4, "attention heads", ge=1)
    d_kv: int = option(64, "width of one head", ge=1)
    dropout_rate: float = option(0.1, "dropout of the recommender", ge=0, le=0.9)
    recency_embedding: bool = option(False, "add a learned vector for an item's place counted from the newest (not in the paper: T5 sees relative places only)")
    num_beams: int = option(20, "beams of the search", ge=1)
    constrained: bool = option(True, "search only SIDs that exist; false: all, and the share of invalid ones is reported")


@dataclass(frozen=True, kw_only=True)
class JointOptions:
    uncertainty: Literal["none", "gumbel", "frqud", "sdud", "frqud_sdud", "gaussian", "tau_annealing"] = option("frqud", "noise on the code assignment and how it fades")
    gradient: Literal["end_to_end", "detached"] = option("end_to_end", "detached: the recommendation loss never reaches the codebooks (historical)")
    assignment_forward: Literal["sampled", "cached", "soft", "history"] = option("sampled", "code of the forward pass: the drawn one, the catalogue's, the soft mixture, or the drawn one in histories and the catalogue's as target")
    deterministic_assignment: Literal["argmax", "sinkhorn"] = option("argmax", "code of an item without noise, counted by FrqUD")
    catalogue_assignment: Literal["argmin", "sinkhorn"] = option("argmin", "SIDs of the whole catalogue after each epoch")
    codebook_update: Literal["soft", "hard"] = option("soft", "hard: gradient to the selected code only (ablation)")
    logit_scale: float | Literal["auto"] = option("auto", "logits = -scale * distance; auto: 3 / median gap between the two nearest codes", gt=0)
    gumbel_tau: float = option(2.0, "temperature tau of the soft assignment", gt=0)
    use_tau_annealing: bool = option(False, "let tau fall exponentially, with any kind of noise")
    tau_anneal_init: float = option(2.0, "tau at the first step of annealing", gt=0)
    tau_anneal_min: float = option(0.5, "lowest tau of annealing", gt=0)
    tau_anneal_rate: float = option(3e-5, "rate of annealing per step", ge=0)
    hot_threshold_ratio: float = option(1.5, "FrqUD: a code is hot above ratio / K (rho)", gt=0)
    usage_momentum: float = option(0.99, "FrqUD: momentum of the usage average (mu)", ge=0, le=1)
    hot_granularity: Literal["item", "level"] = option("item", "FrqUD decides on level 1 for all levels, or on each level")
    initial_std: float = option(2.0, "SDUD: noise scale sigma at the start", ge=0)
    lr_sigma: float = option(1e-3, "SDUD: learning rate of sigma", ge=0)
    sigma_lambda: float = option(1.7, "SDUD: lambda in L / 2(sigma + lambda)^2", gt=0)
    auto_lambda_mode: Literal["fixed", "learnable", "adaptive"] = option("fixed", "SDUD: how lambda is set")
    sdud_loss: Literal["uncertainty", "raw"] = option("uncertainty", "raw leaves the recommendation loss unscaled")
    code_loss_weight: float = option(1.0, "weight of the recommendation loss", ge=0)
    recon_loss_weight: float = option(1.0, "weight of |q - z|^2", ge=0)
    vq_loss_weight: float = option(1.0, "weight of the VQ loss", ge=0)
    rqvae_path: str | None = option(None, "checkpoint of the pre-trained tokenizer (ours or a released best_collision_model.pth)")
    lr_id: float = option(1e-5, "learning rate of the tokenizer", ge=0)
    id_first_epoch: int = option(0, "epoch in which the tokenizer begins to move; it rests before", ge=0)
    id_last_epoch: int | None = option(None, "epoch after which the tokenizer rests again", ge=0)
    target_gradient: float = option(1.0, "weight of the gradient that reaches the codebooks through the target's soft label", gt=0)
    freeze_id_encoder: bool = option(True, "train only the codebooks of the tokenizer")
    freeze_id_encoder_layers: int = option(0, "with freeze_id_encoder=false: rest the first n linear layers", ge=0)
    collapse_perplexity: float | None = option(None, "a level below this perplexity is called collapsing; default K / 8", gt=0)


@dataclass(frozen=True, kw_only=True)
class SequenceOptions:
    hidden_units: int = option(128, "width d of the item embeddings", ge=1)
    num_blocks: int = option(2, "transformer blocks", ge=1)
    hidden_dropout: float = option(0.5, "dropout of embeddings, attention and feed-forward", ge=0, le=0.9)
    sasrec_loss: Literal["ce_all", "bce", "ce_last"] = option("ce_all", "softmax over the catalogue at every position; one random negative at every position; softmax at the last position")
    time_weight: bool = option(True, "diffusion: weigh the loss by 1 / t; false: all hidden items alike (BERT4Rec with a random rate)")
    decoding: Literal["single", "multi", "autoregressive"] = option("single", "rank the next item; fill as many masks as there are places in the list; add the best next item again and again")
    decode_threshold: float = option(0.9, "multi: probability from which a place is filled", ge=0, le=1)
    decode_decay: float = option(0.9, "multi: factor on that threshold until a place reaches it", ge=0, le=1)
    decode_order: Literal["position", "confidence", "single_then_multi"] = option("position", "multi: order of the list; the last: the best next item, then masks after it")
    decode_rounds: int | None = option(None, "multi: fill an equal share of the places in each of so many rounds, instead of by threshold", ge=1)
    remasking: Literal["low_confidence", "random"] = option("low_confidence", "multi: which places are filled first")
    sft_from: str | None = option(None, "best_model.pth of the diffsasrec run that diffsasrec_sft fine-tunes")
    sft_masks: int = option(1, "fine-tuning: how many of the last items may be hidden", ge=1)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    epochs: int = option(120, "most epochs", ge=1)
    early_stop: int = option(15, "stop after so many epochs without a better valid_metric", ge=1)
    batch_size: int = option(256, "samples per step and process (of a model that learns from whole sequences: targets, on average)", ge=1)
    gradient_accumulation_steps: int = option(1, "parts of batch_size samples in one optimizer step", ge=1)
    token_budget: int | None = option(None, "most history tokens in one forward pass, larger batches are split; default 8192 on CPU, 262144 on a GPU", ge=1)
    lr_rec: float = option(1e-3, "learning rate of the recommender", gt=0)
    weight_decay: float = option(0.05, "weight decay", ge=0)
    learner: Literal["adamw", "adam", "sgd"] = option("adamw", "optimizer")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = option("cosine", "learning rate after the warm-up")
    warmup_steps: int = option(500, "steps of linear warm-up", ge=0)
    max_grad_norm: float = option(1.0, "clipping of each part's gradient", gt=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "precision of the recommender; the assignment stays in float32")
    num_workers: int = option(0, "processes that prepare batches ahead", ge=0)


def token_budget(t: TrainOptions, device: str) -> int:
    """Most history tokens in one pass: what a CPU's cache and a laptop's memory like, or what a GPU needs to be busy."""
    return t.token_budget or (262144 if device == "cuda" else 8192)


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    metrics: list[str] = option(["recall@1", "recall@5", "recall@10", "ndcg@1", "ndcg@5", "ndcg@10"], "recall@k (or hr@k), ndcg@k, mrr@k, coverage@k")
    valid_metric: str = option("ndcg@10", "metric that chooses the checkpoint")
    eval_step: int = option(1, "epochs between two validations", ge=1)
    eval_batch_size: int = option(256, "users per evaluation step and process", ge=1)
    mask_seen: bool = option(False, "never recommend what is in the user's history")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    method: str = option("diger", "diger, two_stage (the same recommender on frozen SIDs) sasrec, diffsasrec, diffsasrec_sft (items instead of SIDs)")
    run_name: str | None = option(None, "name of the run folder; default: method and time")
    output_dir: str = option("./myckpt", "run folders go to <output_dir>/<dataset>/<run_name>")
    log_dir: str = option("./logs", "logs go to <log_dir>/<dataset>")
    resume: Literal["no", "auto"] = option("no", "auto: go on with the run of this name, or reprint it when it is finished")
    resume_with_changes: bool = option(False, "resume although options differ from those the run was begun with; the log lists them")
    save_steps: int = option(0, "checkpoint every so many steps besides each epoch; 0 = at epochs only", ge=0)
    with_two_stage: bool = option(False, "run scripts: train the two-stage baseline of the same tokenizer beside")
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Config:
    """All options of one command, a section per component."""

    data: DataOptions
    tokenizer: TokenizerOptions
    pretrain: PretrainOptions
    recommender: RecommenderOptions
    joint: JointOptions
    sequence: SequenceOptions
    train: TrainOptions
    eval: EvalOptions
    run: RunOptions

    def __post_init__(self) -> None:
        ks = [cutoff(m) for m in self.eval.metrics]
        if cutoff(self.eval.valid_metric) and self.eval.valid_metric not in self.eval.metrics:
            raise Problem(f"valid_metric: {self.eval.valid_metric!r} is not among metrics {self.eval.metrics}")
        if max(ks) > self.recommender.num_beams and self.run.method in ("diger", "two_stage"):
            raise Problem(
                f"num_beams: {self.recommender.num_beams} is below the largest cut-off of metrics, {max(ks)}; raise it"
            )
        if (
            self.run.method.startswith("diffsasrec")
            and self.sequence.decoding == "multi"
            and max(ks) > self.data.max_his_len
        ):
            raise Problem(
                f"max_his_len: {self.data.max_his_len} places cannot hold lists of {max(ks)}, which metrics asks of decoding: multi"
            )
        j, t, k = self.joint, self.train, self.tokenizer.num_emb_list
        if j.deterministic_assignment == "sinkhorn" and t.gradient_accumulation_steps > 1:
            raise Problem(
                "deterministic_assignment: sinkhorn balances whole batches; set gradient_accumulation_steps: 1 or deterministic_assignment: argmax"
            )
        if math.prod([*k, k[-1]]) >= 2**63:
            raise Problem(f"num_emb_list: {k} and the suffix make SIDs of more than 63 bits; use fewer levels or codes")
        if j.freeze_id_encoder_layers > len(self.tokenizer.layers) + 1:
            raise Problem(
                f"freeze_id_encoder_layers: {j.freeze_id_encoder_layers}, but the encoder has {len(self.tokenizer.layers) + 1} linear layers"
            )
        if self.run.resume == "auto" and self.run.run_name is None:
            raise Problem("resume: auto needs the run_name to go on with")
        if self.joint.tau_anneal_min > self.joint.tau_anneal_init:
            raise Problem(
                f"tau_anneal_min: {self.joint.tau_anneal_min} exceeds tau_anneal_init {self.joint.tau_anneal_init}"
            )
        for key, name in (("run_name", self.run.run_name), ("dataset", self.data.dataset)):
            if name is not None and not plain_name(name):
                raise Problem(f"{key}: {name!r} is not a plain name; folders go to output_dir and data_path")


def plain_name(name: str) -> bool:
    """Names one file or folder right where it is put, on any file system, with room for an ending."""
    return Path(name).name == name and name[:1] not in ("", ".") and name.isprintable() and len(name.encode()) <= 200


# options of a trained network that the sizes of its weights do not show
SIZELESS = ("num_heads", "d_kv", "reference")

METRICS = ("recall", "hr", "ndcg", "mrr", "coverage")


def cutoff(metric: str) -> int:
    """The k of `recall@k`; Problem for anything that is not a metric."""
    name, _, k = metric.partition("@")
    if name not in METRICS or not k.isdecimal() or int(k) < 1:
        raise Problem(f"metrics: {metric!r} is not one of {', '.join(m + '@k' for m in METRICS)}")
    return int(k)


SECTIONS = cast(dict[str, type], get_type_hints(Config))
FIELDS = {f.name: (section, f) for section, cls in SECTIONS.items() for f in dataclasses.fields(cls)}

# Options of the published program. They did nothing there, or are spelled otherwise here.
_NOTHING = "had no effect in the published program; delete it"
_DECAY = "is now one key: uncertainty=none | gumbel | frqud | sdud | frqud_sdud | gaussian | tau_annealing"
RETIRED = {
    **dict.fromkeys(["sim", "alpha", "tau", "loss_type", "vq_type", "max_length", "feed_forward_proj", "reproducibility", "joint_optimization", "freeze_semantic_embedding", "freeze_id_decoder", "use_gate_network", "bn"], _NOTHING),
    "use_soft_frequency": f"{_NOTHING} (FrqUD: hot_threshold_ratio, hot_granularity)",
    "balance_loss_weight": f"{_NOTHING} (balance: catalogue_assignment=sinkhorn)",
    "gumbel_hard_switch_epoch": f"{_NOTHING} (fading noise: uncertainty=frqud or sdud)",
    "stop_gumbel_sampling_epoch": f"{_NOTHING} (fading noise: uncertainty=frqud or sdud)",
    **{k: f"{_DECAY} ({k}=true is uncertainty={v})" for k, v in {"use_adaptive_selection": "frqud", "use_learnable_sigma_gumbel": "sdud", "use_pure_ste": "none"}.items()},
    "noise_type": f"{_DECAY} (noise_type=gaussian is uncertainty=gaussian)",
    # of the published DiffSASRec
    "model_type": "is now method=sasrec or method=diffsasrec",
    "diffusion_type": "is now decoding=single or decoding=multi",
    "num_recs": "is now the largest cut-off of metrics",
    "maxlen": "is now max_his_len",
    "lr": "is now lr_rec",
    "num_epochs": "is now epochs",
    "sft_num_epochs": "is now epochs of a run of its own, method=diffsasrec_sft",
    "SFT": "is now a run of its own: method=diffsasrec_sft with sft_from",
    "time_q": "is now time_quantile",
    "train_dir": "is now run_name",
    "inference_only": "is now the command main.py evaluate",
    "state_dict_path": "is now --checkpoint of main.py evaluate",
    "l2_emb": "is now weight_decay",
    "device": "is not needed: a GPU is used when there is one",
}  # fmt: skip


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read one YAML file (None: all defaults) and apply `--key=value` overrides.

    Raises Problem for whatever is wrong, quoting the key and the value.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        raw = read_yaml(Path(path))
    return build({**raw, **parse_overrides(overrides)})


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except FileNotFoundError:
        raise Problem(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as e:
        raise Problem(f"{path}: not readable as YAML: {' '.join(str(e).split())}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(k, str) for k in raw):
        raise Problem(f"{path}: expected lines of the form key: value")
    return raw


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in overrides:
        key, sep, value = item.removeprefix("--").partition("=")
        if not item.startswith("--") or not sep:
            raise Problem(f"{item!r}: write options as --key=value")
        if key in found:
            raise Problem(f"--{key}: given twice")
        try:
            parsed = yaml.load(value, Loader=UniqueKeyLoader)
            # a run called 007 or 12:30 is text, whatever YAML makes of it
            found[key] = value if takes_text(key) and not isinstance(parsed, str | list | dict | None) else parsed
        except (yaml.YAMLError, Problem, ValueError, RecursionError) as e:
            raise Problem(f"--{key}: {value!r} is not readable ({' '.join(str(e).split())})") from None
    return found


def takes_text(key: str) -> bool:
    want = hints(SECTIONS[FIELDS[key][0]])[key] if key in FIELDS else None
    return want is str or want == str | None


def build(raw: dict[str, Any]) -> Config:
    """Typed sections from flat names; a .csv file as data_path names the data set."""
    source = raw.get("data_path")
    if isinstance(source, str) and source.lower().endswith(".csv"):
        raw = {"dataset": Path(source).stem, **raw}
    parts: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key, value in raw.items():
        if key not in FIELDS:
            raise unknown(str(key))
        section, f = FIELDS[key]
        parts[section][key] = coerce(hints(SECTIONS[section])[key], value, key, f.metadata)
    return Config(**{section: cls(**parts[section]) for section, cls in SECTIONS.items()})


def unknown(key: str) -> Problem:
    if key in RETIRED:
        return Problem(f"option {key!r} {RETIRED[key]}")
    near = difflib.get_close_matches(key, FIELDS, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "; --help lists them all"
    return Problem(f"unknown option {key!r}{hint}")


def hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def coerce(want: Any, value: Any, key: str, limits: Any) -> Any:
    """Convert `value` to the option's type; Problem quotes key and value when it does not fit."""
    origin, members = get_origin(want), get_args(want)
    if origin in (types.UnionType, Union):
        if value is None and type(None) in members:
            return None
        for member in members:
            if get_origin(member) is Literal and value in get_args(member):
                return value
        plain = [m for m in members if m is not type(None) and get_origin(m) is not Literal]
        return coerce(plain[0], value, key, limits)
    if origin is Literal:
        if value in members and not isinstance(value, bool):
            return value
        text = {False: "no", True: "yes"}.get(value) if isinstance(value, bool) else None
        if text in members:  # YAML reads a bare no as false
            return text
        raise Problem(f"{key}: expected one of {', '.join(map(str, members))}, got {shown(value)}")
    if origin is list:
        return [coerce(members[0], v, key, limits) for v in _as_list(value, key)]
    return _within(_scalar(want, value, key), key, limits)


def shown(value: Any) -> str:
    """A value for a message; nested and repeated ones, which may unfold without end, are cut."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict = 2, 6, 6
    short.maxstring = short.maxother = 200
    return short.repr(value)


def _as_list(value: Any, key: str) -> list[Any]:
    if isinstance(value, str):  # the published files write "recall@1,recall@5", a command line 64,64
        try:
            return [yaml.safe_load(v) for v in value.split(",") if v.strip()]
        except (yaml.YAMLError, ValueError, RecursionError):
            raise Problem(f"{key}: expected a list, got {shown(value)}") from None
    if isinstance(value, list):
        return value
    raise Problem(f"{key}: expected a list, got {shown(value)}")


def _scalar(want: type, value: Any, key: str) -> Any:
    if type(value) is want:
        return value
    if want is float and type(value) in (int, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    if want is int and type(value) is float and value.is_integer() and abs(value) < 2**53:
        return int(value)  # YAML 1.2 files write 1e3
    if want is str and type(value) in (int, float):  # a data set called 2014
        return str(value)
    name = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[want]
    raise Problem(f"{key}: expected {name}, got {shown(value)}")


def _within(value: Any, key: str, limits: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise Problem(f"{key}: must be finite, got {shown(value)}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        checks = {"ge": (lambda a, b: a >= b, "at least"), "gt": (lambda a, b: a > b, "above"),
                  "le": (lambda a, b: a <= b, "at most")}  # fmt: skip
        for name, (holds, words) in checks.items():
            if name in limits and not holds(value, limits[name]):
                raise Problem(f"{key}: must be {words} {limits[name]}, got {shown(value)}")
    return value


def flat(cfg: Config) -> dict[str, Any]:
    """All options as one flat dictionary, in the order of the sections."""
    return {k: v for section in dataclasses.asdict(cfg).values() for k, v in section.items()}


def dump(cfg: Config) -> str:
    """The resolved configuration as YAML; `load` of it gives an equal Config."""
    return yaml.safe_dump(flat(cfg), sort_keys=False, default_flow_style=None)


def replace(cfg: Config, **changes: Any) -> Config:
    """A copy with some options (flat names) changed, checked like any other."""
    return build({**flat(cfg), **changes})


def help_text() -> str:
    """Every option with its default and meaning, section by section."""
    lines = []
    for section, cls in SECTIONS.items():
        lines.append(f"\n{section}:")
        for f in dataclasses.fields(cls):
            default = getattr(cls(), f.name)
            want = hints(cls)[f.name]
            choices = f" ({' | '.join(get_args(want))})" if get_origin(want) is Literal else ""
            shown = "-" if default is None else default
            lines.append(f"  --{f.name}={shown}\n      {f.metadata['meaning']}{choices}")
    return "\n".join(lines)


class UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (PyYAML keeps the last one silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(k, deep=deep) for k, _ in node.value]  # type: ignore[no-untyped-call]
        twice = sorted({str(k) for k in keys if keys.count(k) > 1})
        if twice:
            raise Problem(f"option given twice: {', '.join(twice)}")
        return super().construct_mapping(node, deep)
