"""Options of the published programs that are not options here: each with what to do instead.

Files and command lines of those programs run as they are: what had no effect there, or asks for what is always so here,
is left out with one warning; other spellings are understood; what would change the result is an error.
"""

from collections.abc import Mapping
from typing import Any

from utils import log, quoted, shown

_NOTHING = "had no effect in the published program; delete it"
_DECAY = "is now one key: uncertainty=none | gumbel | frqud | sdud | frqud_sdud | gaussian | tau_annealing"

RETIRED = {
    # of the published DIGER: they did nothing there, or are spelled otherwise here
    "sim": _NOTHING,
    "alpha": _NOTHING,
    "tau": _NOTHING,
    "loss_type": _NOTHING,
    "vq_type": _NOTHING,
    "max_length": _NOTHING,
    "feed_forward_proj": _NOTHING,
    "reproducibility": _NOTHING,
    "joint_optimization": _NOTHING,
    "freeze_semantic_embedding": _NOTHING,
    "freeze_id_decoder": _NOTHING,
    "use_gate_network": _NOTHING,
    "bn": _NOTHING,
    "code_num": "follows from num_emb_list; delete it",
    "code_length": "follows from num_emb_list; delete it",
    "semantic_hidden_size": "is the width of the embedding file; delete it",
    "sk_iters": "is always 50 here; delete it",
    "activation_function": "is always relu here; delete it",
    "use_indicator_ste": "is always true here: gradients pass through the code, not the vector; delete it",
    "freeze_rq": "is always false here; for codebooks at rest method=two_stage",
    "freeze_id_epochs": "is now id_first_epoch",
    "use_tau_annealing": f"{_DECAY} (use_tau_annealing=true is uncertainty=tau_annealing)",
    "tau_anneal_init": "is gumbel_tau here, where annealing starts; delete it",
    "dist": "is always l2 here, the squared Euclidean distance; delete it",
    "dropout_prob": "is always 0 here; delete it",
    "kmeans_init": "is always on here; delete it",
    "map_path": "is always <dataset>.emb_map.json beside the splits; delete it",
    "learner": "is always AdamW here; delete it",
    "lr_scheduler_type": "is always the cosine here; delete it",
    "num_workers": "is not needed: batches are made where they are used; delete it",
    "use_soft_frequency": f"{_NOTHING} (FrqUD: hot_threshold_ratio, hot_granularity)",
    "balance_loss_weight": f"{_NOTHING} (balance: catalogue_assignment=sinkhorn)",
    "gumbel_hard_switch_epoch": f"{_NOTHING} (fading noise: uncertainty=frqud or sdud)",
    "stop_gumbel_sampling_epoch": f"{_NOTHING} (fading noise: uncertainty=frqud or sdud)",
    "use_adaptive_selection": f"{_DECAY} (use_adaptive_selection=true is uncertainty=frqud)",
    "use_learnable_sigma_gumbel": f"{_DECAY} (use_learnable_sigma_gumbel=true is uncertainty=sdud)",
    "use_pure_ste": f"{_DECAY} (use_pure_ste=true is uncertainty=none)",
    "noise_type": f"{_DECAY} (noise_type=gaussian is uncertainty=gaussian)",
    "freeze_id_encoder_layers": "is now one key: freeze_id_encoder=true freezes the whole encoder, false none of it",
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
    # of the published FORGE: they did nothing there
    "batch_loss_weight": _NOTHING,
    "neg_loss_weight": _NOTHING,
    "kl_div_loss_weight": _NOTHING,
    "latent_loss_weight": _NOTHING,
    "max_neg_len": _NOTHING,
    "neg_num": _NOTHING,
    "filter_lr": _NOTHING,
    "freeze_lv1": _NOTHING,
    "freeze_lv2": _NOTHING,
    "rotation_trick": _NOTHING,
    "contrastive": _NOTHING,
    "fuka": _NOTHING,
    "restart_unused_codes": f"{_NOTHING} (codes that nobody uses: dead_code_ratio)",
    "VQ_ema": "is now codebook_learning=ema",
    "latent_weight": "is now quant_loss_weight (its second number) and beta (the first divided by the second)",
}

SPELT = {"freeze_id_epochs": "id_first_epoch"}  # the same under another name
ALWAYS = {  # the one value that a key has here
    "learner": "adamw", "lr_scheduler_type": "cosine", "dist": "l2", "dropout_prob": 0, "kmeans_init": True,
    "sk_iters": 50, "activation_function": "relu", "use_indicator_ste": True, "freeze_rq": False,
    "freeze_id_encoder_layers": 0,
}  # fmt: skip
DECAYS: dict[str, dict[Any, str | None]] = {  # key and value -> uncertainty
    "use_adaptive_selection": {True: "frqud", False: None},
    "use_learnable_sigma_gumbel": {True: "sdud", False: None},
    "use_pure_ste": {True: "none", False: None},
    "use_tau_annealing": {True: "tau_annealing", False: None},
    "noise_type": {"gaussian": "gaussian", "gumbel": None},
}
BY_FILES = ("semantic_hidden_size", "num_workers")  # whatever is said, the embedding file or nothing decides


def translated(
    preset: Mapping[str, Any], given: Mapping[str, Any], usual: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(preset, given, what is wrong): a file's options and a command line's without the published programs' own keys.

    usual: the defaults. Keys without effect go with one warning that lists them; what is wrong is a sentence each.
    """
    sources, wrong, idle = (dict(preset), dict(given)), [], []
    now = {**usual, **preset, **given}
    for source in reversed(sources):  # of the command line first: it goes before the file
        for key in [k for k in source if k in RETIRED and k not in DECAYS]:
            value, new = source.pop(key), SPELT.get(key)
            if sources[1].get(key, value) != value or (source is sources[0] and key in given):
                continue  # the command line's was judged
            if new and source.get(new, value) != value:
                wrong.append(f"{key}: is {new} here, which is set to {shown(source[new])}; delete one of the two")
            elif new and value != usual[new]:
                source[new] = value
            elif new or without_effect(key, value, now):
                hint = RETIRED[key].partition(_NOTHING)[2]  # " (what has that effect)"
                idle.append(key + hint)
            else:
                wrong.append(f"option {key!r} {RETIRED[key]} (it says {shown(value)})")
    wrong += decay(*sources)
    if idle:
        log.warning(f"without effect here, left out: {', '.join(idle)}")
    return *sources, wrong


def without_effect(key: str, value: Any, now: Mapping[str, Any]) -> bool:
    """Does a retired key say nothing, or what is so anyway? now: all options."""
    if RETIRED[key].startswith(_NOTHING) or key in BY_FILES:
        return True
    if key in ALWAYS:
        return bool(lowered(value) == ALWAYS[key]) and isinstance(value, bool) == isinstance(ALWAYS[key], bool)
    sizes = now["num_emb_list"] if isinstance(now["num_emb_list"], list) else []
    if key == "code_num":
        return set(sizes) == {value}
    if key == "code_length":  # there with the token that keeps items apart
        return value in (len(sizes), len(sizes) + 1) and not isinstance(value, bool)
    if key == "tau_anneal_init":
        return bool(value == now["gumbel_tau"])
    return key == "map_path" and str(value).rpartition("/")[2] == f"{now['dataset']}.emb_map.json"


def decay(preset: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Turn the published keys of the noise into `uncertainty`, in place; what is wrong with them."""
    said = {k: v for k, v in {**preset, **given}.items() if k in DECAYS}
    source, other = (given, preset) if DECAYS.keys() & given.keys() else (preset, given)
    for each in (preset, given):
        for key in said:
            each.pop(key, None)
    if wrong := [k for k, v in said.items() if lowered(v) not in list(DECAYS[k])]:
        return [f"option {k!r} {RETIRED[k]}; {shown(said[k])} is none of its values" for k in wrong]
    on = {name for k, v in said.items() if (name := DECAYS[k][lowered(v)])}
    off = {next(iter(DECAYS[k].values())) for k, v in said.items() if not DECAYS[k][lowered(v)]}
    now = source.get("uncertainty", other.get("uncertainty"))
    if not said or (not on and now is not None and not off & set(str(now).split("_"))):
        return []
    if source is preset and "uncertainty" in given:
        return []
    told = ", ".join(f"{k}: {shown(v)}" for k, v in said.items())
    name = "frqud_sdud" if on == {"frqud", "sdud"} else "+".join(sorted(on)) or "gumbel"
    if "+" in name:
        return [f"{told}: asks for {' and '.join(sorted(on))} at once; name one of them by uncertainty"]
    if source.get("uncertainty", name) != name:
        return [f"{told}: is uncertainty: {name} here, which is set to {shown(now)}; delete one of the two"]
    source["uncertainty"] = name
    return []


def lowered(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def placeholders(options: Mapping[str, Any]) -> list[str]:
    """A sentence for each value that the published files leave to be filled in, as <PATH_TO_CHECKPOINT>."""
    return [
        f"{key}: {quoted(value)} is a placeholder; put your own there, by --{key}=..., or delete the line"
        for key, value in options.items()
        if isinstance(value, str) and "<" in value and ">" in value.partition("<")[2]
        and value.partition("<")[2].partition(">")[0].replace("_", "").isupper()
    ]  # fmt: skip
