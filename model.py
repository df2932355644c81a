"""The generative recommender, and the joint model that trains it together with the tokenizer.

Shape letters: B users, S history length, U distinct items of a batch, N items of the catalogue, R rows that
a step predicts, T code places, P token places, K codes of a level, h recommender width.
"""

import contextlib
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import building
from data import Batch, recent
from layers import soft_label_loss
from metrics import EvalOptions
from prior import PRIORS, PriorOptions
from readers.splits import DataOptions
from recommenders.items import LOGITS, best_items, softmax_loss
from recommenders.protocol import AllReduce, Autocast, Found, Hit, Logs, Recommender, Scorer, TokenNetwork, unsound
from settings import Config, option
from sids.legal import Legal
from sids.search import AllTokens, SearchOptions, Tree, Trie, beam_search, spell
from sids.table import SidOptions, SidTable, Spelling, ended
from sids.tokenizer import Joint, Quantized
from uncertainty import STRATEGIES, UncertaintyOptions
from utils import Problem, log, quoted
from vq import QuantizerOptions

KEEP_LOW, MOVE_LOW, MOVE_HIGH = 0.2, 0.01, 1.0  # outside of these the log warns before training
ROADS = ("history", "target", "teacher")  # from the recommendation loss to the codebooks


class Taught(NamedTuple):
    """A recommendation loss, and the state [R, h] of each row, which foretells its target."""

    loss: Tensor
    state_Rh: Tensor


@dataclass(frozen=True, kw_only=True)
class JointOptions:
    gradient: Literal["end_to_end", "detached"] = option(
        "end_to_end", "detached: the recommendation loss never reaches the codebooks (historical)"
    )
    code_loss_weight: float = option(1.0, "weight of the recommendation loss", ge=0)
    recon_loss_weight: float = option(1.0, "weight of |q - z|^2", ge=0)
    vq_loss_weight: float = option(1.0, "weight of the VQ loss", ge=0)
    latent_loss: float = option(
        0.0, "weight of a loss of the next item's latent among those of all items (with lr_offset it moves them)", ge=0
    )
    offset_prior: float = option(
        0.0,
        "with lr_offset: weight of a Gaussian prior on them, which holds rare items where their content is",
        ge=0,
        needs=("lr_offset",),
    )
    lr_id: float = option(1e-5, "learning rate of the tokenizer", ge=0)
    id_first_epoch: int = option(0, "epoch in which the tokenizer begins to move; it rests before", ge=0)
    id_last_epoch: int | None = option(None, "epoch after which the tokenizer rests again", ge=0)
    target_gradient: float = option(
        1.0,
        "weight of the gradient that reaches the codebooks through the target's soft label",
        gt=0,
        needs=("gradient: end_to_end",),
    )
    collapse_perplexity: float | None = option(
        None, "a level below this perplexity is called collapsing; default K / 8", gt=0
    )

    def __post_init__(self) -> None:
        if self.id_last_epoch is not None and self.id_last_epoch < self.id_first_epoch:
            raise Problem(
                f"id_last_epoch: {self.id_last_epoch} comes before id_first_epoch {self.id_first_epoch}: the tokenizer "
                "would never move; for that, method: two_stage"
            )


class GenerativeModel(nn.Module):
    """A network over the SIDs of a catalogue: with the codes of a frozen tokenizer this is two-stage training
    (TIGER, arXiv:2305.05065).

    One module, one optimizer, one checkpoint: the SIDs travel with the weights.
    """

    code_NT: Tensor
    end_N: Tensor | None
    order_N: Tensor | None
    pretrained = False
    target_gradient = 1.0

    def __init__(self, cfg: Config, network: TokenNetwork, n_items: int, spelling: Spelling) -> None:
        super().__init__()
        self.cfg, self.n_items, self.search = cfg, n_items, cfg[SearchOptions]
        self.depth = self.search.num_beams
        self.recommender = network
        self.tokens_per_item, self.targets = network.tokens_per_item, network.targets
        self.sequences = network.targets == "next"
        self.sizes, self.ends, self.uneven = spelling.sizes, spelling.ends, not spelling.even
        shared = not self.ends
        self.register_buffer("code_NT", torch.zeros(n_items, len(self.sizes), dtype=torch.int32))
        self.register_buffer("end_N", None if shared else torch.zeros(n_items, dtype=torch.int32))
        self.register_buffer("order_N", torch.arange(1, n_items + 1) if shared else None)
        self._sids: SidTable | None = None
        self._whole: Trie | None = None
        self._tree: tuple[Tensor, Trie] | None = None  # of the last `among`
        self._legal: Legal | None = None

    # ---- semantic IDs

    @property
    def sids(self) -> SidTable:
        if self._sids is None or self._sids.code_NT is not self.code_NT:  # the buffers are others on another device
            self._whole = self._tree = self._legal = None
            self._sids = SidTable(self.code_NT, self.end_N, self.sizes, self.ends, self.order_N)
        return self._sids

    @property
    def item_tokens(self) -> np.ndarray:
        """Tokens of each item, [N]."""
        return self.sids.count_N

    def set_codes(self, code_NT: Tensor, count_N: np.ndarray | None = None, end_N: Tensor | None = None) -> None:
        """Take the learned codes [N, T] of the catalogue and tell the items apart that share them, if they may not.

        count_N: how often each item occurs; then those of a group are numbered by falling count. end_N: their end
        tokens, where they are known.
        """
        code_NT = code_NT[:, : len(self.sizes)]
        if end_N is None and self.ends:
            end_N = ended(code_NT, self.cfg[SidOptions].collision, self.ends, count_N)
        self.code_NT.copy_(code_NT)
        if self.end_N is not None and end_N is not None:
            self.end_N.copy_(end_N)
        self._sids = self._whole = self._tree = self._legal = None

    def trie(self, among_M: Tensor | None = None) -> Trie:
        """The prefix tree of the catalogue or of some items; that of the catalogue and the last other one are kept."""
        sids, kept, whole = self.sids, self._tree, self._whole
        if among_M is None:
            whole = self._whole = whole or sids.trie()
            return whole
        if kept is None or kept[0] is not among_M:
            kept = among_M, sids.trie(among_M)
            self._tree = kept  # in one assignment: callers in other threads see a whole pair
        return kept[1]

    @property
    def legal(self) -> Legal:
        """Which tokens may follow which prefix, of the SIDs as they are."""
        sids = self.sids
        if self._legal is None:
            self._legal = Legal(sids, self.trie())
        return self._legal

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        sid_NP = state_dict.pop(f"{prefix}sid_NL", None)  # as saved before codes and end tokens were told apart
        if sid_NP is not None:
            state_dict[f"{prefix}code_NT"], state_dict[f"{prefix}end_N"] = sid_NP[:, :-1], sid_NP[:, -1]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._sids = self._whole = self._tree = self._legal = None
        errors = args[-1]  # of torch's signature: the missing names stand elsewhere
        if not errors and f"{prefix}code_NT" in state_dict and (fault := self.sids.fault(uneven=self.uneven)):
            errors.append(fault)

    # ---- training

    def quantize(self, batch: Batch) -> Quantized:
        """Codes of the batch's distinct items; here a look-up."""
        token_UP = self.sids.tokens(batch.item_U).token
        return Quantized([token_UP[:, place] for place in range(len(self.sizes))])

    def recommendation_loss(
        self, batch: Batch, q: Quantized, roads: tuple[str, ...] = ROADS, log_shares: Sequence[Tensor | None] = ()
    ) -> Taught:
        """L_rec: cross-entropy of a target's P tokens, mean over targets and places.

        L_rec = - mean_p sum_k y_k log softmax(logits_p)_k, y = m_l(target) at learned places (arXiv:2601.19711),
        and with `item_loss` w that much of the cross-entropy of the item itself among all items.
        roads names the ways on which its gradient may reach q: the history's tokens, the target as a
        soft label, the decoder's teacher-forced inputs. log_shares: of each level's codes, [K] or of each item [U, K],
        the term that completes the loss; a constant while the tokenizer rests, hence none then.
        """
        token_UP, real_UP = self.sids.tokens(batch.item_U)
        goal = q.goal()

        def tokens(codes: Quantized, road: str) -> Tensor:
            return self.recommender.embed(codes if road in roads else codes.detached(), token_UP)

        history_UPh = tokens(q, "history")
        shared = goal is q and ("history" in roads) == ("teacher" in roads)
        teacher_UPh = history_UPh if shared else tokens(goal, "teacher")
        label = goal if "target" in roads else goal.detached()
        row_R = batch.goals(self.targets)
        open_UP = real_UP if self.uneven else None
        if self.search.legal_softmax:
            open_UP = self.legal.open(batch.item_U)

        terms, places, weight = [], len(self.sids.vocabulary), self.recommender.item_loss
        said = self.recommender(history_UPh, batch, teacher_UPh, open_UP, real_UP if self.uneven else None)
        for place, score_RV in enumerate(said.logits):
            chosen_R, logits_RV = row_R, score_RV
            if open_UP is not None:
                chosen_R = row_R[open_UP[row_R, place]]
            if self.search.legal_softmax:
                legal_RV = self.legal.tokens(place, batch.item_U[chosen_R])
                logits_RV = score_RV.masked_fill(~legal_RV, -torch.inf)
            elif self.uneven:
                logits_RV = score_RV[:, :-1]  # what stands behind an end is no choice
            share = log_shares[place] if place < len(log_shares) else None
            terms.append(self._place_loss(place, logits_RV, label, token_UP, chosen_R, len(row_R), share))
        loss = torch.stack(terms).mean() * (len(terms) / places)
        if weight:  # the item itself
            item_Nh = self.recommender.catalogue(self.sids.token_NP, batch.item_U, teacher_UPh)
            item_RN = self.recommender.item_logits(said.state_Rh, item_Nh)
            loss = loss + weight * F.cross_entropy(item_RN, batch.item_U[row_R] - 1)
        return Taught(loss, said.state_Rh)

    def _place_loss(
        self, place: int, logits_RV: Tensor, label: Quantized, token_UP: Tensor, row_R: Tensor, rows: int,
        log_share: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Sum of a place's cross-entropy over the targets that have a choice there, divided by all `rows` targets."""
        if place >= len(label.index):
            return soft_label_loss(logits_RV, token_UP[row_R, place], None, row_R, rows=rows)
        if label.blend and label.soft is not None:  # the label itself is soft
            y_RV = label.soft_label(place, row_R, self.target_gradient)
            return -(y_RV * logits_RV.log_softmax(-1)).sum() / rows
        p_UV = None if label.soft is None else label.soft[place]
        index_R = label.index[place][row_R]
        return soft_label_loss(logits_RV, index_R, p_UV, row_R, self.target_gradient, log_share, rows)

    def forward(self, batch: Batch) -> tuple[Tensor, Logs]:
        """(L_rec of a batch, its parts for the log)."""
        loss, _ = self.recommendation_loss(batch, self.quantize(batch))
        return loss, {"loss": loss.detach(), "loss/rec": loss.detach()}

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"name": "rec", "params": list(self.recommender.parameters())}]

    def probe(self, *parts: Batch, autocast: Autocast = contextlib.nullcontext) -> dict[str, float]:
        """Figures of some samples before an epoch; the joint model proves its gradient here."""
        return {}

    def after_step(self, all_reduce: AllReduce) -> None:
        """Once per optimizer step, on every process alike."""

    def refresh(self) -> dict[str, Any]:
        """After each epoch: re-read the catalogue's SIDs, report on them."""
        return self.figures()

    def figures(self) -> dict[str, float]:
        """Codes used and perplexity per level, and the collision rate, of the catalogue's SIDs."""
        return self.sids.figures()

    def announce(self, reachable: dict[str, float]) -> None:
        """Nothing to say of fixed SIDs."""

    def working_numbers(self, B: int, S: int, users: int) -> dict[str, int]:
        step = self.recommender.training_numbers(B, S)
        return {"training step": step, "evaluation batch": self.recommender.search_numbers(users, S, self.depth)}

    # ---- recommending

    @torch.inference_mode()
    def recommend(
        self, history_BS: Tensor, k: int, banned_BS: Tensor | None = None, among_M: Tensor | None = None,
        wider: int = 0,
    ) -> Found:  # fmt: skip
        """The k best items for each history, best first, with the log-probability of their SIDs; wider: so many more
        beams than a list of k needs.

        What is banned takes beams until its last token; where a list is short of k for that, its history is searched
        again with as many more beams. So a list does not depend on the others of its batch.
        """
        beams = max(k + wider, self.search.num_beams)
        found = self._searched(history_BS, beams, banned_BS, among_M)
        item_BK, score_BK = (
            F.pad(x, (0, max(0, k - x.shape[1])), value=nothing)[:, :k]
            for x, nothing in zip(found, (0, -torch.inf), strict=True)
        )
        if banned_BS is not None:
            short_B = (item_BK > 0).sum(1) < k
            banned_B = torch.tensor([len(set(row) - {0}) for row in banned_BS[short_B].tolist()], dtype=torch.long)
            for more in banned_B.unique().tolist():
                rows = short_B.nonzero()[:, 0][(banned_B == more).to(short_B.device)]
                again = self._searched(history_BS[rows], beams + more, banned_BS[rows], among_M)
                width = min(k, again.item_BW.shape[1])
                item_BK[rows, :width], score_BK[rows, :width] = again.item_BW[:, :width], again.score_BW[:, :width]
        return Found(item_BK, score_BK)

    def _searched(self, history_BS: Tensor, beams: int, banned_BS: Tensor | None, among_M: Tensor | None) -> Found:
        """What a search of some width finds, best first."""
        score = self.recommender.scorer(lambda item: self.sids.tokens(item).token, history_BS)
        if self.uneven:
            score = without_last(score, len(self.sids.vocabulary))
        trie = self.trie(among_M)
        tree = trie if self.search.constrained else AllTokens(trie)
        legal = self.search.legal_softmax
        found = beam_search(score, tree, len(history_BS), beams, history_BS.device, banned_BS, legal_softmax=legal)
        if self.recommender.item_loss:
            found = self._with_items(found, score, tree, banned_BS, among_M)
        return found

    def _with_items(
        self, found: Found, score: Scorer, tree: Tree, banned_BS: Tensor | None, among_M: Tensor | None
    ) -> Found:
        """A search's items and as many that the network ranks first as whole items, all by log-probability of the SID
        plus w times that of the item (LIGER, arXiv:2411.18814), best first.
        """
        item_BN = score(len(self.sids.vocabulary), None, None)
        open_BN = item_BN
        if among_M is not None:
            open_BN = torch.full_like(item_BN, -torch.inf).index_copy(1, among_M - 1, item_BN[:, among_M - 1])
        best = best_items(open_BN, found.item_BW.shape[1], banned_BS)
        new_BW = ~(best.item_BW[:, :, None] == found.item_BW[:, None]).any(2) & (best.item_BW > 0)
        token_BWP, real_BWP = self.sids.tokens(best.item_BW.clamp(min=1))
        spelled_BW = spell(score, tree, token_BWP, real_BWP, legal_softmax=self.search.legal_softmax)
        item_BW = torch.cat([found.item_BW, best.item_BW.masked_fill(~new_BW, 0)], 1)
        sid_BW = torch.cat([found.score_BW, spelled_BW.masked_fill(~new_BW, -torch.inf)], 1)
        whole_BW = item_BN.gather(1, (item_BW - 1).clamp(min=0))
        score_BW, order_BW = (sid_BW + self.recommender.item_rank * whole_BW).sort(dim=1, descending=True, stable=True)
        return Found(item_BW.gather(1, order_BW), score_BW)

    def groups(self) -> dict[str, Tensor]:
        """Items that share their codes count as one entry of a list."""
        return {"prefix": self.sids.groups()}


def without_last(score: Scorer, places: int) -> Scorer:
    """The same log-probabilities normalised over all tokens of a place but the last, which stands behind an end."""

    def scored(place: int, token_R: Tensor | None, parent_R: Tensor | None, among_RC: Tensor | None = None) -> Tensor:
        if among_RC is not None or place >= places:  # known up to a constant a row only, or whole items
            return score(place, token_R, parent_R, among_RC)
        return F.pad(score(place, token_R, parent_R)[:, :-1].log_softmax(-1), (0, 1), value=-torch.inf)

    return scored


class JointModel(GenerativeModel):
    """DIGER (arXiv:2601.19711): tokenizer, uncertainty decay and recommender trained by one loss,

        L = w_code L_rec' + w_recon |q - z|^2 + w_vq L_vq + w_latent L_latent + w_offset L_offset,

    L_rec' being what the decay makes of L_rec, the next three means over the batch's targets, L_offset over the
    catalogue.
    """

    Options: ClassVar[type[JointOptions]] = JointOptions
    first_NP: Tensor
    step: Tensor

    def __init__(self, cfg: Config, tokenizer: Joint, network: TokenNetwork, n_items: int, spelling: Spelling) -> None:
        super().__init__(cfg, network, n_items, spelling)
        self.joint = cfg[JointOptions]
        self.target_gradient = self.joint.target_gradient
        self.tokenizer = tokenizer
        self.prior = PRIORS[cfg[PriorOptions].label_prior](cfg[PriorOptions], list(self.sizes), n_items)
        self.decay = STRATEGIES[cfg[UncertaintyOptions].uncertainty](cfg[UncertaintyOptions], list(self.sizes))
        self.latent_head = nn.Linear(network.width, tokenizer.e_dim) if self.joint.latent_loss else None
        self.roads = ROADS if self.joint.gradient == "end_to_end" else ()
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("first_NP", self.sids.token_NP.int())

    def attach(self, content_ND: np.ndarray) -> None:
        """Hand the catalogue's embeddings to the tokenizer and take its first SIDs; needed for training only."""
        self.tokenizer.attach(content_ND, self.decay)
        self.set_codes(self.tokenizer.codes())
        self.first_NP.copy_(self.sids.token_NP)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for old, new in (("first_NL", "first_NP"), ("scale_L", "tokenizer.scale_L")):  # names of earlier versions
            if f"{prefix}{old}" in state_dict:
                state_dict[f"{prefix}{new}"] = state_dict.pop(f"{prefix}{old}")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # ---- training

    def quantize(self, batch: Batch) -> Quantized:
        """Each distinct item once."""
        cached_UL = self.code_NT[batch.item_U - 1].long()
        return self.tokenizer.quantize(batch.item_U, self.step, self.decay, cached_UL)

    def forward(self, batch: Batch) -> tuple[Tensor, Logs]:
        """(the whole loss L of a batch, its parts for the log)."""
        j, row_R = self.joint, batch.goals(self.targets)
        q, log_shares = self.quantize(batch), self.log_shares(batch.item_U)
        rec, state_Rh = self.recommendation_loss(batch, q, self.roads, log_shares)
        recon, vq = q.recon.index_select(0, row_R).mean(), q.vq.index_select(0, row_R).mean()  # type: ignore[union-attr]
        loss = j.code_loss_weight * self.decay.task_loss(rec)
        loss = loss + j.recon_loss_weight * recon + j.vq_loss_weight * vq
        if self.training:
            self.decay.observe(q.nearest, batch.new_U, rec.detach() * batch.weight)
            self.prior.observe(batch.item_U[row_R], [index[row_R] for index in q.goal().index], batch.weight)
        logs = {"loss/rec": rec, "loss/recon": recon, "loss/vq": vq, **self._agreement(batch, q)}
        logs |= self._prior_size(q, row_R, log_shares)
        if self.latent_head is not None:
            logs["loss/latent"] = self.latent_loss(self.latent_head(state_Rh), batch.item_U[row_R])
            loss = loss + j.latent_loss * logs["loss/latent"]
        if j.offset_prior:
            logs["loss/offset"] = self.tokenizer.offset_energy()
            loss = loss + j.offset_prior * logs["loss/offset"]
        return loss, {k: v.detach() for k, v in {"loss": loss, **logs}.items()}

    def latent_loss(self, asked_Rd: Tensor, item_R: Tensor) -> Tensor:
        """L_latent = -mean_r log softmax_v((W h_r + b) . z_v)_target: what comes next, said by the latents that the
        codes are made of (docs/method.md, 5.5).
        """
        alike_R = torch.ones_like(item_R, dtype=torch.float32)
        return softmax_loss(asked_Rd, self.tokenizer.item_vectors(), item_R - 1, alike_R) / len(item_R)

    def log_shares(self, item_U: Tensor) -> list[Tensor | None]:
        """log qbar of each level's codes, for the distinct items of a batch."""
        return [self.prior.log_share(level, item_U, self.code_NT) for level in range(len(self.sizes))]

    @torch.no_grad()
    def _prior_size(self, q: Quantized, row_R: Tensor, log_shares: Sequence[Tensor | None]) -> Logs:
        """Mean over targets and levels of sum_k p_k log qbar_k, the value of the term that only its gradient adds."""
        sizes = [(p * s).sum(1)[row_R].mean() for p, s in zip(q.soft or (), log_shares, strict=True) if s is not None]
        return {"loss/label_prior": torch.stack(sizes).mean()} if sizes else {}

    @torch.no_grad()
    def _agreement(self, batch: Batch, q: Quantized) -> Logs:
        """How the batch's codes relate to the deterministic ones and to the catalogue's."""
        index_UL, drawn_UL, nearest_UL = (torch.stack(x, 1) for x in (q.index, q.drawn, q.nearest))
        cached_UL = self.code_NT[batch.item_U - 1]
        return {
            "stochastic_share": torch.stack(q.stochastic).float().mean(),
            "sampled_differs": (drawn_UL != nearest_UL).float().mean(),
            "sid_agreement": (index_UL == cached_UL).all(1).float().mean(),
        }

    def probe(self, *parts: Batch, autocast: Autocast = contextlib.nullcontext) -> dict[str, float]:
        """The proof: norm of L_rec's gradient at each codebook, road by road, over parts that weigh together 1.

        Problem when one is zero or not finite although `gradient: end_to_end` is set.
        """
        figures: dict[str, float] = {}
        probed = self.tokenizer.probed()
        for road in ROADS:
            roads = (road,) if road in self.roads else ()
            sums = [torch.zeros_like(p) for p in probed.values()]
            for batch in parts:
                with autocast():
                    shares = self.log_shares(batch.item_U)
                    loss = self.recommendation_loss(batch, self.quantize(batch), roads, shares).loss * batch.weight
                found = torch.autograd.grad(loss, list(probed.values()), allow_unused=True)
                sums = [s if g is None else s + g for s, g in zip(sums, found, strict=True)]
            figures |= {f"grad/{name}/{road}": float(s.norm()) for name, s in zip(probed, sums, strict=True)}
        if self.roads:
            idle = set.intersection(*map(self._idle_roads, parts))
            check_proof({k: v for k, v in figures.items() if k not in idle})
        return figures

    def _idle_roads(self, batch: Batch) -> set[str]:
        """Roads that legal_softmax leaves without anything to say: no target of the batch has a choice behind them."""
        if not self.search.legal_softmax:
            return set()
        open_UP = self.legal.open(batch.item_U)
        open_RP, taught_RP = (open_UP[batch.goals(t)] for t in (self.targets, self.recommender.taught))
        names = list(self.tokenizer.probed())
        teachers = {f"grad/{name}/teacher" for i, name in enumerate(names) if not taught_RP[:, i + 1 :].any()}
        return teachers | {f"grad/{name}/target" for i, name in enumerate(names) if not open_RP[:, i].any()}

    def after_step(self, all_reduce: AllReduce) -> None:
        self.decay.after_step(all_reduce)
        self.prior.after_step(all_reduce)
        self.step += 1

    def param_groups(self) -> list[dict[str, Any]]:
        j, lr_sigma = self.joint, self.cfg[UncertaintyOptions].lr_sigma
        epochs = (j.id_first_epoch, j.id_last_epoch)
        own = self.tokenizer.offsets()
        shared = [p for p in trainable(self.tokenizer) if all(p is not o for o in own)]
        tokenizer = {"name": "id", "params": shared, "lr": j.lr_id, "epochs": epochs}
        lr_offset = self.cfg[QuantizerOptions].lr_offset
        offset = {"name": "offset", "params": own, "lr": lr_offset, "epochs": epochs, "weight_decay": 0.0}
        sigma = {"name": "sigma", "params": trainable(self.decay), "lr": lr_sigma, "weight_decay": 0.0, "clip": False}
        head = {"name": "latent_head", "params": list(self.latent_head.parameters()) if self.latent_head else []}
        return [*super().param_groups(), tokenizer, *(group for group in (offset, sigma, head) if group["params"])]

    def refresh(self) -> dict[str, Any]:
        """Take the tokenizer's SIDs as it is now; how far they moved, how they spread, how much noise falls."""
        code_NT, token_NP = self.code_NT.clone(), self.sids.token_NP
        try:
            self.set_codes(self.tokenizer.codes())
            self.prior.renew()
        except Problem as e:  # a collapse; what has been trained so far is not lost with it
            log.warning(f"{e}. The catalogue keeps the semantic IDs it had; no SID changes until its codes fit again")
        figures: dict[str, Any] = self.figures()
        changed_N = (self.code_NT != code_NT).any(1)
        figures["codes_changed"] = float(changed_N.float().mean())  # without end tokens
        figures["sid_changed"] = float((self.sids.token_NP != token_NP).any(1).float().mean())
        figures["codes_changed_since_start"] = self._moved(len(self.sizes))
        figures["sid_changed_since_start"] = self._moved(self.first_NP.shape[1])
        self._warn_of_collapse(figures)
        scales = self.decay.scales()
        figures["noise_scale"] = sum(scales) / len(scales)
        figures |= {f"noise_scale/level_{i}": s for i, s in enumerate(scales, 1)}
        figures["tau"] = float(self.decay.tau(self.step))
        figures |= {f"code_count/level_{i}": counts for i, counts in enumerate(self.sids.counts(), 1)}
        return figures | self.tokenizer.figures(self.decay)

    def announce(self, reachable: dict[str, float]) -> None:
        """Figures per level that tell harmful, inert and overshooting runs apart before they train."""
        u, q = self.cfg[UncertaintyOptions], self.cfg[QuantizerOptions]
        log.info(
            f"DIGER: uncertainty {u.uncertainty}, gradient {self.joint.gradient}, forward {q.assignment_forward}, "
            f"tau {float(self.decay.tau(self.step)):g}, logit_scale {q.logit_scale}"
        )
        if not self.roads:
            log.info("gradient: detached - the recommendation loss does NOT reach the codebooks; grad/ will be zero")
        for level, s in enumerate(self.tokenizer.levels, 1):
            moved = reachable["id"] / s.rms
            log.info(
                f"level {level}: median gap {s.gap:.3g}, logits -{s.scale:.3g} d, P(drawn = nearest) "
                f"{s.keep:.2f} where "
                f"noise falls, rms(C) {s.rms:.3g}, reachable movement {reachable['id']:.3g} = {moved:.3g} rms"
            )
            if s.keep < KEEP_LOW:
                log.warning(
                    f"level {level}: a noisy item keeps its nearest code with probability {s.keep:.3f} only: "
                    "the draw is "
                    "nearly uniform; logit_scale: auto measures the distances' own scale"
                )
            if not MOVE_LOW <= moved <= MOVE_HIGH:
                what = "hardly move" if moved < MOVE_LOW else "may overshoot"
                log.warning(
                    f"level {level}: with lr_id {self.joint.lr_id:g} the codes {what} ({moved:.2g} of their "
                    "rms over the run)"
                )

    def working_numbers(self, B: int, S: int, users: int) -> dict[str, int]:
        """Per level also distances, noise, logits, soft assignment and their gradients."""
        found, items = super().working_numbers(B, S, users), min(self.n_items, B * (S + 1))
        step = found["training step"] + 10 * items * sum(self.sizes)
        if self.latent_head is not None:  # scores of all items, in parts, and the gradient at their latents
            step += min(B * S * self.n_items, LOGITS) + 3 * self.n_items * self.tokenizer.e_dim
        return found | {"training step": step}

    def _warn_of_collapse(self, figures: dict[str, float]) -> None:
        for level, k in enumerate(self.sizes, 1):
            limit, spread = self.joint.collapse_perplexity or k / 8, figures[f"perplexity/level_{level}"]
            if spread < limit:
                log.warning(
                    f"level {level} is collapsing: perplexity {spread:.1f} is below collapse_perplexity {limit:g}"
                )

    def _moved(self, places: int) -> float:
        """Share of items that differ from the start in one of the first places of their SID."""
        changed_NP = self.sids.token_NP != self.first_NP
        return float(changed_NP[:, :places].any(1).float().mean())


def check_proof(figures: dict[str, float]) -> None:
    """Problem when a road to a codebook is cut."""
    for key, norm in figures.items():
        if norm == 0 or not np.isfinite(norm):
            raise Problem(
                f"{key} is {norm}: the recommendation loss does not reach this codebook; "
                "check logit_scale and gumbel_tau (a saturated softmax has no gradient), or set gradient: detached"
            )


def trainable(module: Joint | nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


# ---------------------------------------------------------------- a trained model in Python


STRUCK = 100  # denied items that a wider search makes up for; more of them make a tree of the others


class Offer(NamedTuple):
    """Which items may come: how many they are; the only ones (None: the whole catalogue); those of the catalogue that
    are struck out by a search so much wider, in which the others keep their scores.
    """

    size: int
    among_M: Tensor | None
    struck: list[int]


@dataclass(frozen=True)
class Loaded:
    """A trained model of any kind, ready to recommend; holds no state of its callers, so threads may share it."""

    cfg: Config
    model: Recommender
    number: dict[str, int]  # item number of an id, from 1
    items: list[str]  # ids in catalogue order
    titles: list[str]
    split_hash: str | None  # of the data it was trained on
    source: str  # the file it came from

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = 10, *, allow: Iterable[str] | None = None,
        deny: Iterable[str] = (),
    ) -> list[list[Hit]]:  # fmt: skip
        """The best k items for each history of item ids, oldest first, of any length; best first.

        allow: the only items that may come, None for all; deny: items that may not. With `mask_seen` those of
        the history may not either. Fewer than k come where fewer are left. Problem names an id that is not in
        the catalogue.
        """
        if k < 1:
            raise Problem(f"k: expected a whole number from 1, got {k!r}")
        wanted = [numbers(history, self.number, f"history {i}") for i, history in enumerate(histories)]
        if empty := [i for i, history in enumerate(wanted) if not history]:
            raise Problem(f"history {empty[0]}: needs at least one item")
        offer = self.offer(
            None if allow is None else numbers(allow, self.number, "allow"), numbers(deny, self.number, "deny")
        )
        found: list[list[Hit]] = []
        size = self.cfg[EvalOptions].eval_batch_size
        for begin in range(0, len(wanted), size):
            found += self.hits(self.rank(wanted[begin : begin + size], k, offer))
        return found

    def offer(self, allow: Iterable[int] | None, deny: Iterable[int]) -> Offer:
        """What may come of the items allowed (None: all) less those denied, by their numbers."""
        refused, device = set(deny), next(self.model.parameters()).device
        if allow is None and len(refused) <= STRUCK:
            return Offer(len(self.items) - len(refused), None, sorted(refused))
        left = sorted(set(range(1, 1 + len(self.items)) if allow is None else allow) - refused)
        return Offer(len(left), torch.tensor(left, dtype=torch.long, device=device), [])

    def rank(self, histories: Sequence[Sequence[int]], k: int, offer: Offer | None = None) -> Found:
        """Lists of at most k item numbers for some histories of item numbers, one batch; offer: what may come, None for
        the whole catalogue. Problem when a score is not finite.
        """
        size, among_M, struck = offer or self.offer(None, ())
        if (k := min(k, size)) == 0:
            return Found(torch.zeros(len(histories), 0, dtype=torch.long), torch.zeros(len(histories), 0))
        longest, seen = self.cfg[DataOptions].max_his_len, self.cfg[EvalOptions].mask_seen
        budget = self.cfg[DataOptions].history_tokens
        history_BS = left_padded([recent(history, longest, budget, self.model) for history in histories])
        banned_BS = left_padded([[*struck, *(history if seen else ())] for history in histories])
        device = next(self.model.parameters()).device
        # a search looks as much further as is struck out; the others leave out before they choose
        wider = {"wider": len(struck)} if isinstance(self.model, GenerativeModel) else {}
        found = self.model.recommend(history_BS.to(device), k, banned_BS.to(device), among_M, **wider)
        if bool(unsound(found.score_BW, banned=bool(banned_BS.any()) or among_M is not None).any()):
            raise Problem(
                f"{self.source}: its scores are not finite, its training diverged; use another checkpoint, or train it "
                "again with lower learning rates"
            )
        return Found(found.item_BW[:, :k], found.score_BW[:, :k])

    def hits(self, found: Found) -> list[list[Hit]]:
        """Lists as people read them."""
        rows = zip(found.item_BW.tolist(), found.score_BW.tolist(), strict=True)
        return [
            [Hit(self.items[i - 1], self.titles[i - 1], s) for i, s in zip(*row, strict=True) if i > 0] for row in rows
        ]


def load(path: str | Path, overrides: Sequence[str] = (), device: str = "cpu") -> Loaded:
    """A trained model from its `best_model.pth`, or the folder that scripts/export.py made of it; overrides: options
    that may differ from its training, as `--key=value` (`--num_beams=50`). Nothing in a file is executed; Problem when
    it is damaged.
    """
    return loaded_of(building.restore(path, overrides), path, device)


def loaded_of(restored: building.Restored, path: str | Path, device: str = "cpu") -> Loaded:
    cfg, model, state = restored
    number = {token: i for i, token in enumerate(state["items"], 1)}
    return Loaded(cfg, model.to(device), number, state["items"], state["titles"], state.get("split"), str(path))


def numbers(ids: Iterable[str], number: dict[str, int], source: str) -> list[int]:
    """Item numbers of some ids; Problem names the first that is not in the catalogue."""
    found = list(ids)
    for token in found:
        if token not in number:
            raise Problem(f"{source}: item {quoted(token)} is not in the catalogue; {near(token, number)}")
    return [number[token] for token in found]


def near(token: str, number: dict[str, int]) -> str:
    small = len(number) < 200_000 and len(token) < 200
    found = difflib.get_close_matches(token, number, n=1) if small else []
    return f"did you mean {quoted(found[0])}?" if found else "ids are those of the interaction log"


def left_padded(rows: list[list[int]]) -> Tensor:
    """Item numbers [B, S] of lists of unlike length, 0 in front."""
    width = max(1, *map(len, rows))
    return torch.tensor([[0] * (width - len(row)) + row for row in rows])
