"""The generative recommender over the semantic IDs (SIDs) of a catalogue.

Shape letters: B users, S history length, U distinct items of a batch, N items of the catalogue, R rows that
a step predicts, T code positions, P token positions, K codes of a level, h recommender width.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import Batch
from layers import soft_label_loss
from recommenders import items
from recommenders.base import Model, trainable
from recommenders.items import best_of_all
from recommenders.protocol import Logs, Scorer, TopK
from recommenders.tokens import TokenNetwork
from sids.legal import Legal
from sids.search import AllTokens, SearchOptions, Tree, Trie, beam_search, spell
from sids.table import SidOptions, SidTable, SidVocabulary, ended
from sids.tokenizer import ROWS, Quantized, joined
from utils import log

PATHS = ("history", "target", "teacher")  # gradient paths from L_rec to the codebooks, where SIDs learn


class RecLoss(NamedTuple):
    """L_rec; what each row predicts (rows of item_U, [R]); the state [R, h] it predicts from; the items' embedded
    tokens [U, P, h] as the decoder reads them.
    """

    loss: Tensor
    row_R: Tensor
    state_Rh: Tensor
    teacher_UPh: Tensor


class SidParts(NamedTuple):
    """What a model over SIDs is made of, whichever way it is trained."""

    network: TokenNetwork
    n_items: int
    vocabulary: SidVocabulary
    sids: SidOptions
    search: SearchOptions


class GenerativeModel(Model):
    """A network over the SIDs of a catalogue: with the codes of a frozen tokenizer this is two-stage training
    (TIGER, arXiv:2305.05065).

    One module, one optimizer, one checkpoint: the SIDs travel with the weights.
    """

    code_NT: Tensor
    end_N: Tensor | None
    order_N: Tensor | None
    targets: Literal["one", "next"]  # type: ignore[assignment]
    target_gradient = 1.0

    def __init__(self, parts: SidParts) -> None:
        super().__init__()
        network, self.n_items, vocabulary, self.sid_options, self.search = parts
        self.free_length = self.search.num_beams
        self.recommender = network
        self.tokens_per_item, self.targets = network.tokens_per_item, network.targets
        self.sequences = network.targets == "next"
        self.sizes, self.ends, self.variable_length = vocabulary.sizes, vocabulary.ends, not vocabulary.even
        shared = not self.ends
        self.register_buffer("code_NT", torch.zeros(self.n_items, len(self.sizes), dtype=torch.int32))
        self.register_buffer("end_N", None if shared else torch.zeros(self.n_items, dtype=torch.int32))
        self.register_buffer("order_N", torch.arange(1, self.n_items + 1) if shared else None)
        self._sids: SidTable | None = None
        self._whole: Trie | None = None
        self._tree: tuple[Tensor, Trie] | None = None  # of the last `among`
        self._legal: Legal | None = None

    # ---- semantic IDs

    @property
    def sids(self) -> SidTable:
        if self._sids is None or self._sids.code_NT is not self.code_NT:  # the buffers are others on another device
            self._forget_sids()
            self._sids = SidTable(self.code_NT, self.end_N, self.sizes, self.ends, self.order_N)
        return self._sids

    def _forget_sids(self) -> None:
        """The codes are others, or lie on another device: what was made of them is made anew when it is asked for."""
        self._sids = self._whole = self._tree = self._legal = None

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
            end_N = ended(code_NT, self.sid_options.collision, self.ends, count_N)
        self.code_NT.copy_(code_NT)
        if self.end_N is not None and end_N is not None:
            self.end_N.copy_(end_N)
        self._forget_sids()

    def trie(self, candidates_M: Tensor | None = None) -> Trie:
        """The prefix tree of the catalogue or of some items; that of the catalogue and the last other one are kept."""
        sids, kept, whole = self.sids, self._tree, self._whole
        if candidates_M is None:
            whole = self._whole = whole or sids.trie()
            return whole
        if kept is None or kept[0] is not candidates_M:
            kept = candidates_M, sids.trie(candidates_M)
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
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._forget_sids()
        errors = args[-1]  # of torch's signature: the missing names stand elsewhere
        if not errors and f"{prefix}code_NT" in state_dict:
            errors.extend(filter(None, [self.sids.fault(variable_length=self.variable_length)]))

    # ---- training

    def quantize(self, batch: Batch) -> Quantized:
        """Codes of the batch's distinct items; here a look-up."""
        token_UP = self.sids.tokens(batch.item_U).token
        return Quantized([token_UP[:, position] for position in range(len(self.sizes))])

    def sid_loss(
        self, batch: Batch, codes: Quantized, paths: tuple[str, ...] = PATHS, log_usage: Sequence[Tensor | None] = ()
    ) -> RecLoss:
        """Cross-entropy of a target's P tokens, mean over targets and positions (arXiv:2601.19711),

            L_rec = - mean_p sum_k y_k log softmax(logits_p)_k,    y = m_l(target) where a position is learned.

        paths: the ways on which its gradient may reach the codes: the history's tokens, the target as a soft label,
        the decoder's teacher-forced inputs. log_usage: log qbar of each level's codes, [K] or of each item [U, K],
        for the usage-corrected loss (joint/prior.py).
        """
        token_UP, real_UP = self.sids.tokens(batch.item_U)
        goal, row_R, positions = codes.goal(), batch.goals(self.targets), len(self.sids.vocabulary)

        def embed(codes: Quantized, path: str) -> Tensor:
            return self.recommender.embed(codes if path in paths else codes.detached(), token_UP)

        history_UPh = embed(codes, "history")
        shared = goal is codes and ("history" in paths) == ("teacher" in paths)
        teacher_UPh = history_UPh if shared else embed(goal, "teacher")
        label = goal if "target" in paths else goal.detached()
        open_UP = self._choices(batch.item_U, real_UP)
        out = self.recommender(history_UPh, batch, teacher_UPh, open_UP, real_UP if self.variable_length else None)
        losses = []
        for position, logits_RV in enumerate(out.logits):
            chosen_R = row_R if open_UP is None else row_R[open_UP[row_R, position]]
            legal_RV = self._legal_logits(position, logits_RV, batch.item_U[chosen_R])
            usage = log_usage[position] if position < len(log_usage) else None
            losses.append(self._position_loss(position, legal_RV, label, token_UP, chosen_R, len(row_R), usage))
        loss = torch.stack(losses).mean() * (len(losses) / positions)
        return RecLoss(loss, row_R, out.state_Rh, teacher_UPh)

    def _choices(self, item_U: Tensor, real_UP: Tensor) -> Tensor | None:
        """At which positions an item's token is a choice at all, [U, P]; None: at all of them."""
        if self.search.legal_softmax:
            return self.legal.open(item_U)
        return real_UP if self.variable_length else None

    def _legal_logits(self, position: int, logits_RV: Tensor, target_R: Tensor) -> Tensor:
        """Logits of the tokens that the softmax is taken over; target_R: item numbers."""
        if self.search.legal_softmax:
            return logits_RV.masked_fill(~self.legal.tokens(position, target_R), -torch.inf)
        return logits_RV[:, :-1] if self.variable_length else logits_RV  # the last token stands behind an item's end

    def _position_loss(
        self, position: int, logits_RV: Tensor, label: Quantized, token_UP: Tensor, row_R: Tensor, rows: int,
        log_usage: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Sum of a position's cross-entropy over the targets with a choice there, divided by all `rows` targets."""
        if position >= len(label.index):  # the dedup token is not learned
            return soft_label_loss(logits_RV, token_UP[row_R, position], None, row_R, rows=rows)
        if label.blend and label.soft is not None:  # the label itself is soft
            y_RV = label.soft_label(position, row_R, self.target_gradient)
            return -(y_RV * logits_RV.log_softmax(-1)).sum() / rows
        p_UV = None if label.soft is None else label.soft[position]
        index_R = label.index[position][row_R]
        return soft_label_loss(logits_RV, index_R, p_UV, row_R, self.target_gradient, log_usage, rows)

    def item_loss(self, batch: Batch, rec: RecLoss) -> Tensor:
        """Cross-entropy of the next item itself among all items (LIGER, arXiv:2411.18814), mean over rows; of a large
        catalogue among a sample.
        """
        if self.n_items > items.EXACT:
            return self._sampled_item_loss(batch, rec)
        item_Nh = self.recommender.catalogue(self.sids.token_NP, batch.item_U, rec.teacher_UPh)
        item_RN = self.recommender.item_logits(rec.state_Rh, item_Nh)
        return F.cross_entropy(item_RN, batch.item_U[rec.row_R] - 1)

    def _sampled_item_loss(self, batch: Batch, rec: RecLoss) -> Tensor:
        def vectors(row_X: Tensor) -> Tensor:
            place_X = torch.searchsorted(batch.item_U, row_X + 1).clamp(max=len(batch.item_U) - 1)
            taught_X11 = (batch.item_U[place_X] == row_X + 1)[:, None, None]
            token_XPh = self.recommender.look_up(self.sids.token_NP[row_X])
            return self.recommender.item_table(torch.where(taught_X11, rec.teacher_UPh[place_X], token_XPh), row_X + 1)

        assert self.recommender.whole is not None
        query_Rh = self.recommender.whole(rec.state_Rh)
        return items.sampled_loss(query_Rh, vectors, batch.item_U[rec.row_R] - 1, self.n_items)

    def forward(self, batch: Batch) -> tuple[Tensor, Logs]:
        """(L_rec of a batch and the loss of whole items, its parts for the log)."""
        rec, weight = self.sid_loss(batch, self.quantize(batch)), self.recommender.item_loss
        logs, loss = {"loss/rec": rec.loss}, rec.loss
        if weight:
            logs["loss/item"] = weight * self.item_loss(batch, rec)
            loss = loss + logs["loss/item"]
        return loss, {k: v.detach() for k, v in {"loss": loss, **logs}.items()}

    def announce(self, reachable: dict[str, float]) -> None:
        items.say_sampled(self.n_items)  # whichever losses there are
        if self.recommender.item_loss and self.n_items > items.RANKED:
            log.info(f"hybrid ranking: of {self.n_items} items those that the search finds are scored as whole items")

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"name": "rec", "params": trainable(self.recommender)}]

    def resting(self) -> list[str]:
        return [f"recommender.{name}" for name in self.recommender.resting()]

    def figures(self) -> dict[str, float]:
        """Codes used and perplexity per level, and the collision rate, of the catalogue's SIDs."""
        return self.sids.figures()

    # ---- recommending

    @torch.inference_mode()
    def recommend(
        self, history_BS: Tensor, k: int, excluded_BS: Tensor | None = None, candidates_M: Tensor | None = None,
        wider: int = 0,
    ) -> TopK:  # fmt: skip
        """The k best items for each history, best first, with the log-probability of their SIDs; wider: so many more
        beams than a list of k needs.

        What is excluded takes beams until its last token; where a list is short of k for that, its history is searched
        again with as many more beams. So a list does not depend on the others of its batch.
        """
        beams = max(k + wider, self.search.num_beams)
        found = self._searched(history_BS, beams, excluded_BS, candidates_M)
        item_BK, score_BK = (
            F.pad(x, (0, max(0, k - x.shape[1])), value=nothing)[:, :k]
            for x, nothing in zip(found, (0, -torch.inf), strict=True)
        )
        if excluded_BS is not None:
            short_B = (item_BK > 0).sum(1) < k
            excluded_B = torch.tensor([len(set(row) - {0}) for row in excluded_BS[short_B].tolist()], dtype=torch.long)
            for more in excluded_B.unique().tolist():
                rows = short_B.nonzero()[:, 0][(excluded_B == more).to(short_B.device)]
                again = self._searched(history_BS[rows], beams + more, excluded_BS[rows], candidates_M)
                width = min(k, again.item_BW.shape[1])
                item_BK[rows, :width], score_BK[rows, :width] = again.item_BW[:, :width], again.score_BW[:, :width]
        return TopK(item_BK, score_BK)

    def _searched(
        self, history_BS: Tensor, beams: int, excluded_BS: Tensor | None, candidates_M: Tensor | None
    ) -> TopK:
        """What a search of some width finds, best first."""
        score = self.recommender.scorer(lambda item: self.sids.tokens(item).token, history_BS)
        if self.variable_length:
            score = without_last(score, len(self.sids.vocabulary))
        trie = self.trie(candidates_M)
        tree = trie if self.search.constrained else AllTokens(trie)
        legal = self.search.legal_softmax
        found = beam_search(score, tree, len(history_BS), beams, history_BS.device, excluded_BS, legal_softmax=legal)
        if self.recommender.item_loss:
            found = self._with_items(found, score, tree, excluded_BS, candidates_M)
        return found

    def _with_items(
        self, found: TopK, score: Scorer, tree: Tree, excluded_BS: Tensor | None, candidates_M: Tensor | None
    ) -> TopK:
        """A search's items and as many that the network ranks first as whole items, all by log-probability of the SID
        plus w times that of the item (LIGER, arXiv:2411.18814), best first. Of a large catalogue a search's items
        alone; then a sample tells the item's log-probability, up to a constant a user.
        """
        query_Bh = score(len(self.sids.vocabulary), None, None)
        if self.n_items <= items.RANKED:
            outside_BM = items.with_others(excluded_BS, candidates_M, len(query_Bh), self.n_items)
            every_N = torch.arange(self.n_items, device=query_Bh.device)
            best, total_B1 = best_of_all(query_Bh, self._item_table(every_N), found.item_BW.shape[1], outside_BM)
            found = self._with_new(found, best, score, tree)
        else:
            sample_M = torch.arange(items.SAMPLED, device=query_Bh.device) * self.n_items // items.SAMPLED
            _, total_B1 = best_of_all(query_Bh, self._item_table(sample_M), 1)
            total_B1 = total_B1 + math.log(self.n_items / items.SAMPLED)
        row_BW = (found.item_BW - 1).clamp(min=0)
        table_BWh = self._item_table(row_BW.flatten()).view(*row_BW.shape, -1)
        whole_BW = (table_BWh @ query_Bh.to(table_BWh.dtype)[..., None])[..., 0] - total_B1
        score_BW = found.score_BW + self.recommender.item_rank * whole_BW
        score_BW, order_BW = score_BW.sort(dim=1, descending=True, stable=True)
        return TopK(found.item_BW.gather(1, order_BW), score_BW)

    def _with_new(self, found: TopK, best: TopK, score: Scorer, tree: Tree) -> TopK:
        """What a search has found and behind it what of some best items is new, each by the score of its SID."""
        new_BW = ~(best.item_BW[:, :, None] == found.item_BW[:, None]).any(2) & (best.item_BW > 0)
        token_BWP, real_BWP = self.sids.tokens(best.item_BW.clamp(min=1))
        spelled_BW = spell(score, tree, token_BWP, real_BWP, legal_softmax=self.search.legal_softmax)
        item_BW = torch.cat([found.item_BW, best.item_BW.masked_fill(~new_BW, 0)], 1)
        return TopK(item_BW, torch.cat([found.score_BW, spelled_BW.masked_fill(~new_BW, -torch.inf)], 1))

    def _item_table(self, row_X: Tensor) -> Tensor:
        """What whole items are scored by, [X, h]; row_X: rows of the catalogue."""
        rec, token_NP = self.recommender, self.sids.token_NP
        return joined((rec.item_table(rec.look_up(token_NP[row]), row + 1) for row in row_X.split(ROWS)), len(row_X))

    def groups(self) -> dict[str, Tensor]:
        """Items that share their codes count as one entry of a list."""
        return {"prefix": self.sids.groups()}


def without_last(score: Scorer, positions: int) -> Scorer:
    """The same log-probabilities normalised over all tokens of a position but the last, which stands behind an end."""

    def scored(
        position: int, token_R: Tensor | None, parent_R: Tensor | None, candidates_RC: Tensor | None = None
    ) -> Tensor:
        if candidates_RC is not None or position >= positions:  # known up to a constant a row only, or whole items
            return score(position, token_R, parent_R, candidates_RC)
        return F.pad(score(position, token_R, parent_R)[:, :-1].log_softmax(-1), (0, 1), value=-torch.inf)

    return scored
