"""The generative recommender over the SIDs of a catalogue, and a trained model of any kind in Python (`load`).

Shape letters: B users, S history length, U distinct items of a batch, N items of the catalogue, R rows that
a step predicts, T code places, P token places, K codes of a level, h recommender width.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import building
from data import Batch, recent
from layers import soft_label_loss
from metrics import EvalOptions
from readers.splits import DataOptions
from recommenders.items import best_items
from recommenders.protocol import AllReduce, Autocast, Found, Hit, Logs, Recommender, Scorer, TokenNetwork, unsound
from settings import Config
from sids.legal import Legal
from sids.search import AllTokens, SearchOptions, Tree, Trie, beam_search, spell
from sids.table import SidOptions, SidTable, Spelling, ended
from sids.tokenizer import Quantized
from utils import Problem, nearest, quoted

ROADS = ("history", "target", "teacher")  # from the recommendation loss to the codebooks, where SIDs learn


class Taught(NamedTuple):
    """A recommendation loss; the loss of whole items beside it, weighted (0 without one); the state [R, h] of each row,
    which foretells its target.
    """

    loss: Tensor
    item_loss: Tensor
    state_Rh: Tensor


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
        self.free_length = self.search.num_beams
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
            end_N = ended(code_NT, self.cfg[SidOptions].collision, self.ends, count_N)
        self.code_NT.copy_(code_NT)
        if self.end_N is not None and end_N is not None:
            self.end_N.copy_(end_N)
        self._forget_sids()

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
        self._forget_sids()
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
        item_loss = loss.new_zeros(())
        if weight:
            item_Nh = self.recommender.catalogue(self.sids.token_NP, batch.item_U, teacher_UPh)
            item_RN = self.recommender.item_logits(said.state_Rh, item_Nh)
            item_loss = weight * F.cross_entropy(item_RN, batch.item_U[row_R] - 1)
        return Taught(loss, item_loss, said.state_Rh)

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
        """(L_rec of a batch and the loss of whole items, its parts for the log)."""
        rec, item_loss, _ = self.recommendation_loss(batch, self.quantize(batch))
        logs = {"loss": rec + item_loss, "loss/rec": rec}
        if self.recommender.item_loss:
            logs["loss/item"] = item_loss
        return logs["loss"], {k: v.detach() for k, v in logs.items()}

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
        history_BS = left_padded([recent(history, longest, budget, self.model.item_tokens) for history in histories])
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
    """Item numbers of some ids; Problem names the first that is not in the catalogue, and how many more are not."""
    found = list(ids)
    if lost := [token for token in found if token not in number]:
        more = f", nor are {len(lost) - 1} more; leave them out" if len(lost) > 1 else ""
        raise Problem(f"{source}: item {quoted(lost[0])} is not in the catalogue{more}; {hint(lost[0], number)}")
    return [number[token] for token in found]


def hint(token: str, number: dict[str, int]) -> str:
    """What to do about an id that the catalogue does not have."""
    near = nearest(token, number)
    return f"did you mean {quoted(near)}?" if near else "ids are those of the interaction log"


def left_padded(rows: list[list[int]]) -> Tensor:
    """Item numbers [B, S] of lists of unlike length, 0 in front."""
    width = max(1, *map(len, rows))
    return torch.tensor([[0] * (width - len(row)) + row for row in rows])
