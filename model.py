"""The generative recommender, and the joint model that trains it together with the tokenizer.

Shape letters: B samples, S history length, U distinct items of a batch, N items of the catalogue,
L learned levels, K codes of a level, h recommender width, d latent width, T = S * (L + 1) tokens.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layers
from beam import AllCodes, Found, Trie, beam_search
from data import Batch
from settings import Config
from t5 import T5
from uncertainty import STRATEGIES, AllReduce
from utils import Problem
from vq import RQVAE, JointQuantizer, Quantized, in_chunks, measure_scales

Logs = dict[str, Tensor]
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]
ROADS = ("history", "target", "teacher")  # from the recommendation loss to the codebooks


class Recommender(nn.Module):
    """T5 over the tokens of semantic IDs; one token table per level, tied with the logits."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        r = cfg.recommender
        self.sizes = sid_sizes(cfg)
        self.t5 = T5(
            width=r.d_model, inner=r.d_ff, heads=r.num_heads, d_kv=r.d_kv, dropout=r.dropout_rate,
            encoder_layers=r.encoder_layers, decoder_layers=r.decoder_layers,
        )  # fmt: skip
        self.tables = nn.ParameterList(torch.randn(k, r.d_model) * 0.02 for k in self.sizes)
        self.start = nn.Parameter(torch.randn(r.d_model) * 0.02)
        self.recency = nn.Embedding(cfg.data.max_his_len, r.d_model) if r.recency_embedding else None
        if self.recency is not None:
            nn.init.normal_(self.recency.weight, 0, 0.02)

    def embed(self, q: Quantized, suffix_U: Tensor) -> Tensor:
        """Tokens of U items, [U, L + 1, h]: m_l E_l, and a plain look-up of the suffix."""
        learned = [q.lookup(level, self.tables[level]) for level in range(len(q.index))]
        return torch.stack([*learned, F.embedding(suffix_U, self.tables[-1])], 1)

    def encode(self, token_BSLh: Tensor, history_BS: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden states [B, T, h], mask [B, T])."""
        keep_BT = (history_BS > 0).repeat_interleave(token_BSLh.shape[2], 1)
        if self.recency is not None:  # histories are padded on the left, the newest item stands last
            age_S = torch.arange(history_BS.shape[1] - 1, -1, -1, device=history_BS.device)
            token_BSLh = token_BSLh + self.recency(age_S)[:, None]
        return self.t5.encode(token_BSLh.flatten(1, 2), keep_BT), keep_BT

    def logits(self, level: int, hidden: Tensor) -> Tensor:
        """Scores of a level's codes, tied with its token table."""
        return F.linear(hidden, self.tables[level]).to(self.tables[level].dtype)

    def forward(self, token_BSLh: Tensor, history_BS: Tensor, prefix_BLh: Tensor) -> Iterator[Tensor]:
        """Teacher-forced logits [B, K_l], level by level."""
        cache = self.t5.start(*self.encode(token_BSLh, history_BS))
        start_B1h = self.start.expand(len(prefix_BLh), 1, -1)
        hidden = self.t5.decode(torch.cat([start_B1h, prefix_BLh], 1), cache)
        return (self.logits(level, hidden[:, level]) for level in range(len(self.sizes)))

    def next_log_probs(
        self, token_BSLh: Tensor, history_BS: Tensor
    ) -> Callable[[int, Tensor | None, Tensor | None], Tensor]:
        """The scorer that `beam_search` asks; encoder and source keys run once per user."""
        cache = self.t5.start(*self.encode(token_BSLh, history_BS))
        users = len(history_BS)

        def score(level: int, code_R: Tensor | None, parent_R: Tensor | None) -> Tensor:
            if code_R is None or parent_R is None:
                x = self.start.expand(users, 1, -1)
            else:
                cache.reorder(parent_R)
                x = self.tables[level - 1][code_R][:, None]
            return self.logits(level, self.t5.decode(x, cache)[:, 0]).log_softmax(-1)

        return score


def sid_sizes(cfg: Config) -> list[int]:
    """Codes per level of a SID: the learned levels, and the suffix with as many as the last one."""
    k = cfg.tokenizer.num_emb_list
    return [*k, k[-1]]


class GenerativeModel(nn.Module):
    """A recommender over fixed SIDs: with pre-trained codes this is two-stage training (TIGER).

    One module, one optimizer, one checkpoint: the SIDs travel with the weights.
    """

    sid_NL: Tensor
    sequences, targets, pretrained = False, "one", False

    def __init__(self, cfg: Config, n_items: int) -> None:
        super().__init__()
        self.cfg, self.n_items, self.depth = cfg, n_items, cfg.recommender.num_beams
        self.recommender = Recommender(cfg)
        self.sizes = self.recommender.sizes
        self.tokens_per_item = len(self.sizes)
        self.register_buffer("sid_NL", torch.zeros(n_items, len(self.sizes), dtype=torch.int32))
        self._trie: Trie | None = None
        self._among: Tensor | None = None

    def restrict(self, item_M: Tensor | None) -> None:
        """Recommend only these item numbers from now on (None: the catalogue); the model stays as it is."""
        self._among, self._trie = item_M, None

    def set_codes(self, code_NL: Tensor) -> None:
        """Take the learned codes [N, L] of the catalogue and number the items that share them."""
        suffix_N = layers.suffixes(code_NL)
        largest = int(suffix_N.max()) + 1
        if largest > self.sizes[-1]:
            raise Problem(
                f"{largest} items share one code, the suffix can number {self.sizes[-1]}; "
                "raise num_emb_list or pre-train the tokenizer longer"
            )
        self.sid_NL.copy_(torch.cat([code_NL, suffix_N[:, None]], 1))
        self._trie = None

    @property
    def trie(self) -> Trie:
        if self._trie is None:
            among = self._among
            sid_ML = self.sid_NL if among is None else self.sid_NL[among - 1]
            self._trie = Trie(sid_ML, self.sizes, among)
        return self._trie

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._trie = None  # the SIDs have changed

    # ---- training

    def quantize(self, batch: Batch) -> Quantized:
        """Codes of the batch's distinct items; here a look-up."""
        return Quantized(list(self.sid_NL[batch.item_U - 1, :-1].long().unbind(1)))

    def recommendation_loss(self, batch: Batch, q: Quantized, roads: tuple[str, ...] = ROADS) -> Tensor:
        """L_rec: cross-entropy of the target's L + 1 tokens, mean over samples and positions.

        roads names the ways on which its gradient may reach q: the history's tokens, the target as a
        soft label, the decoder's teacher-forced inputs.
        """
        suffix_U = self.sid_NL[batch.item_U - 1, -1].long()
        goal = q.goal()

        def tokens(codes: Quantized, road: str) -> Tensor:
            return self.recommender.embed(codes if road in roads else codes.detached(), suffix_U)

        history_ULh = tokens(q, "history")
        shared = goal is q and ("history" in roads) == ("teacher" in roads)
        teacher_ULh = history_ULh if shared else tokens(goal, "teacher")
        history_BSLh = history_ULh[batch.history_row_BS]
        prefix_BLh = teacher_ULh[batch.target_row_B, :-1]
        label = goal if "target" in roads else goal.detached()

        terms = []
        for level, logits in enumerate(self.recommender(history_BSLh, batch.history_BS, prefix_BLh)):
            if level == len(self.sizes) - 1:
                terms.append(F.cross_entropy(logits, suffix_U[batch.target_row_B]))
            else:
                y_BK = label.label(level, batch.target_row_B, self.sizes[level], self.cfg.joint.target_gradient)
                terms.append(-(y_BK * logits.log_softmax(-1)).sum(1).mean())
        return torch.stack(terms).mean()

    def forward(self, batch: Batch) -> tuple[Tensor, Logs]:
        loss = self.recommendation_loss(batch, self.quantize(batch))
        return loss, {"loss": loss.detach(), "loss/rec": loss.detach()}

    def param_groups(self) -> list[dict[str, Any]]:
        t = self.cfg.train
        return [{"name": "rec", "params": trainable(self.recommender), "lr": t.lr_rec,
                 "weight_decay": t.weight_decay, "clip": t.max_grad_norm}]  # fmt: skip

    def probe(self, batch: Batch, autocast: Autocast = contextlib.nullcontext) -> dict[str, float]:
        """Figures of an epoch's first batch; the joint model proves its gradient here."""
        return {}

    def after_step(self, all_reduce: AllReduce) -> None:
        """Once per optimizer step, on every process alike."""

    def refresh(self) -> dict[str, float]:
        """After each epoch: re-read the catalogue's SIDs, report on them."""
        return self.figures()

    def figures(self) -> dict[str, float]:
        """Codes used and perplexity per level, and the collision rate, of the catalogue's SIDs."""
        code_NL = self.sid_NL[:, :-1].long()
        figures = {"collision_rate": layers.collision_rate(code_NL)}
        for level, code_N in enumerate(code_NL.unbind(1)):
            used, spread = layers.perplexity(code_N, self.sizes[level])
            figures |= {f"codes_used/level_{level + 1}": used, f"perplexity/level_{level + 1}": spread}
        return figures

    # ---- recommending

    @torch.inference_mode()
    def recommend(self, history_BS: Tensor, k: int, banned_BS: Tensor | None = None) -> Found:
        """The k best items for each history, best first, with the log-probability of their SIDs."""
        sid_BSL = self.sid_NL[history_BS.clamp(min=1) - 1].long()
        tables = self.recommender.tables
        token_BSLh = torch.stack([t[sid_BSL[..., i]] for i, t in enumerate(tables)], 2)
        score = self.recommender.next_log_probs(token_BSLh, history_BS)
        r = self.cfg.recommender
        tree = self.trie if r.constrained else AllCodes(self.trie)
        found = beam_search(score, tree, len(history_BS), max(k, r.num_beams), history_BS.device, banned_BS)
        return Found(found.item_BW[:, :k], found.score_BW[:, :k])

    def groups(self) -> Tensor:
        """SID-prefix group of each item, [N + 1]; -1 for padding: items that share their codes."""
        _, group_N = self.sid_NL[:, :-1].unique(dim=0, return_inverse=True)
        return F.pad(group_N, (1, 0), value=-1)


class JointModel(GenerativeModel):
    """DIGER: tokenizer, uncertainty decay and recommender trained by one loss (method, 2-4)."""

    first_NL: Tensor
    scale_L: Tensor
    step: Tensor

    def __init__(self, cfg: Config, tokenizer: RQVAE, content_ND: np.ndarray | None, n_items: int) -> None:
        """content_ND: the catalogue's embeddings; None for a model that only recommends."""
        super().__init__(cfg, n_items)
        self.tokenizer = tokenizer
        self.decay = STRATEGIES[cfg.joint.uncertainty](cfg.joint, cfg.tokenizer.num_emb_list)
        self.quantizer = JointQuantizer(tokenizer.rq, self.decay, cfg.joint, cfg.data.seed)
        self.roads = ROADS if cfg.joint.gradient == "end_to_end" else ()
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("scale_L", torch.ones(len(cfg.tokenizer.num_emb_list)))
        self.register_buffer("first_NL", self.sid_NL.clone())
        self._freeze()
        self.register_buffer("input_Nd", None, persistent=False)
        if content_ND is not None:
            self._start(content_ND)

    def _freeze(self) -> None:
        """What rests is frozen once, by object, before the optimizer exists."""
        j, t = self.cfg.joint, self.tokenizer
        rest = t.n_linears() if j.freeze_id_encoder else j.freeze_id_encoder_layers
        if rest > t.n_linears():
            raise Problem(f"freeze_id_encoder_layers: the encoder has {t.n_linears()} linear layers, not {rest}")
        # a tuple, so that these views of the encoder's layers are not registered a second time
        self._stages = t.encoder_stages(rest)
        for module in (self._stages[0], t.decoder):
            module.requires_grad_(False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """What rests was run over the catalogue once: another resting part would not belong to those latents."""
        if self.input_Nd is not None:
            resting = {id(p) for p in self._stages[0].parameters()}
            for name, ours in self.tokenizer.state_dict(prefix=f"{prefix}tokenizer.", keep_vars=True).items():
                theirs = state_dict.get(name)
                rests = id(ours) in resting or name.endswith((".shift", ".spread"))
                if rests and (theirs is None or not torch.equal(theirs.cpu().to(ours.dtype), ours.detach().cpu())):
                    raise Problem(
                        f"{name}: the tokenizer's file has changed since this run began; restore it or begin a new run"
                    )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _start(self, content_ND: np.ndarray) -> None:
        """Run what rests over the catalogue once; fix the logits' scale; assign the first SIDs."""
        resting = self._stages[0].eval()
        pieces = (
            self.tokenizer.prepare(torch.from_numpy(np.array(content_ND[i : i + 8192], np.float32)))
            for i in range(0, len(content_ND), 8192)
        )
        self.input_Nd = in_chunks(pieces, resting, torch.device("cpu"))
        z_Nd = self.latents()
        self.levels = measure_scales(self.tokenizer.rq, z_Nd, self.cfg.joint.logit_scale, self.decay.scales())
        self.scale_L.copy_(torch.tensor([s.scale for s in self.levels]))
        self.set_codes(self.assign(z_Nd))
        self.first_NL.copy_(self.sid_NL)

    @torch.no_grad()
    def latents(self) -> Tensor:
        """z of the whole catalogue, [N, d], without dropout."""
        learning = self._stages[1]
        was, _ = learning.training, learning.eval()
        z = in_chunks(self.input_Nd.split(8192), learning, self.input_Nd.device)
        learning.train(was)
        return z

    def assign(self, z_Nd: Tensor) -> Tensor:
        """Learned codes [N, L] of the whole catalogue, without noise."""
        return self.tokenizer.rq.assign(z_Nd, self.cfg.joint.catalogue_assignment)

    # ---- training

    def quantize(self, batch: Batch) -> Quantized:
        """Each distinct item once, in float32 whatever the recommender's precision."""
        with torch.autocast(batch.item_U.device.type, enabled=False):
            z_Ud = self._stages[1](self.input_Nd[batch.item_U - 1])
            cached_UL = self.sid_NL[batch.item_U - 1, :-1].long()
            return self.quantizer(z_Ud, batch.item_U, self.step, self.scale_L, cached_UL)

    def forward(self, batch: Batch) -> tuple[Tensor, Logs]:
        j = self.cfg.joint
        q = self.quantize(batch)
        rec = self.recommendation_loss(batch, q, self.roads)
        recon, vq = q.recon[batch.target_row_B].mean(), q.vq[batch.target_row_B].mean()  # type: ignore[index]
        loss = j.code_loss_weight * self.decay.task_loss(rec)
        loss = loss + j.recon_loss_weight * recon + j.vq_loss_weight * vq
        if self.training:
            self.decay.observe(q.nearest, batch.new_U, rec.detach() * batch.weight)
        logs = {"loss": loss, "loss/rec": rec, "loss/recon": recon, "loss/vq": vq, **self._agreement(batch, q)}
        return loss, {k: v.detach() for k, v in logs.items()}

    @torch.no_grad()
    def _agreement(self, batch: Batch, q: Quantized) -> Logs:
        """How the batch's codes relate to the deterministic ones and to the catalogue's."""
        index_UL, sampled_UL, nearest_UL = (torch.stack(x, 1) for x in (q.index, q.sampled, q.nearest))
        cached_UL = self.sid_NL[batch.item_U - 1, :-1]
        return {
            "stochastic_share": torch.stack(q.noisy).float().mean(),
            "sampled_differs": (sampled_UL != nearest_UL).float().mean(),
            "sid_agreement": (index_UL == cached_UL).all(1).float().mean(),
        }

    def probe(self, batch: Batch, autocast: Autocast = contextlib.nullcontext) -> dict[str, float]:
        """The proof: norm of L_rec's gradient at each codebook, road by road.

        Problem when one is zero or not finite although `gradient: end_to_end` is set.
        """
        figures, codebooks = {}, self.tokenizer.rq.codebooks()
        for road in ROADS:
            roads = (road,) if road in self.roads else ()
            with autocast():
                loss = self.recommendation_loss(batch, self.quantize(batch), roads)
            found = torch.autograd.grad(loss, codebooks, allow_unused=True)
            for level, g in enumerate(found, 1):
                figures[f"grad/level_{level}/{road}"] = float(g.norm()) if g is not None else 0.0
        if self.roads:
            for key, norm in figures.items():
                if norm == 0 or not np.isfinite(norm):
                    raise Problem(
                        f"{key} is {norm}: the recommendation loss does not reach this codebook; "
                        "check logit_scale and gumbel_tau (a saturated softmax has no gradient), or set gradient: detached"
                    )
        return figures

    def after_step(self, all_reduce: AllReduce) -> None:
        self.decay.after_step(all_reduce)
        self.step += 1

    def param_groups(self) -> list[dict[str, Any]]:
        t, j = self.cfg.train, self.cfg.joint
        tokenizer = {"name": "id", "params": trainable(self.tokenizer), "lr": j.lr_id, "clip": t.max_grad_norm,
                     "weight_decay": t.weight_decay, "epochs": (j.id_first_epoch, j.id_last_epoch)}  # fmt: skip
        sigma = {"name": "sigma", "params": trainable(self.decay), "lr": j.lr_sigma, "weight_decay": 0.0}
        return [*super().param_groups(), tokenizer, *([sigma] if sigma["params"] else [])]

    def refresh(self) -> dict[str, float]:
        before, z_Nd = self.sid_NL.clone(), self.latents()
        self.set_codes(self.assign(z_Nd))
        figures = self.figures()
        for name, old_NL in (("", before), ("_since_start", self.first_NL)):
            changed_NL = self.sid_NL != old_NL
            figures[f"sid_changed{name}"] = float(changed_NL.any(1).float().mean())
            figures[f"codes_changed{name}"] = float(changed_NL[:, :-1].any(1).float().mean())  # without the suffix
        scales = self.decay.scales()
        figures["noise_scale"] = sum(scales) / len(scales)
        figures |= {f"noise_scale/level_{i}": s for i, s in enumerate(scales, 1)}
        figures["tau"] = float(self.decay.tau(self.step))
        now_scales = measure_scales(self.tokenizer.rq, z_Nd, self.scale_L.tolist(), scales)
        return figures | {f"keep_probability/level_{i}": s.keep for i, s in enumerate(now_scales, 1)}


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]
