"""Options of the published programs and of earlier versions that are not options here: each with what to do instead."""

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
    "use_tau_annealing": f"{_DECAY} (use_tau_annealing=true is uncertainty=tau_annealing)",
    "tau_anneal_init": "is gumbel_tau here, where annealing starts; delete it",
    "dist": "is always l2 here, the squared Euclidean distance; delete it",
    "dropout_prob": "is always 0 here; delete it",
    "kmeans_init": "is always on here; delete it",
    "map_path": "is always <dataset>.emb_map.json beside the splits; delete it",
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
    # of earlier versions
    "reference": "is now two options: split=time_groups (DiffSASRec's split) and as_published=true (its network)",
}


def upgraded(saved: dict[str, object]) -> dict[str, object]:
    """Options as an earlier version saved them, under their names of today."""
    found = dict(saved)
    if "method" in found and "training" not in found:  # when a method was all that was chosen
        training = {"diger": "joint", "two_stage": "frozen"}.get(str(found["method"]))
        names = {"tokenizer": "rqvae", "recommender": "t5", "training": training}
        found |= names if training else dict.fromkeys(names)
    if found.pop("reference", False):
        found["as_published"] = True
        found["split"] = "time_groups" if found.get("split") == "time" else found.get("split", "leave_one_out")
    return found
