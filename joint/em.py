"""Codes that move by alternation, without any gradient through them (after Deep Retrieval, arXiv:2007.07203).

The recommender learns on the present codes as in two-stage training. After every few epochs each item v takes those
codes c_v that its training contexts h ask for, less what it costs to share them (docs/beyond-the-paper.md, 2.5):

    J(c) = sum_v sum_h log p(c_v | h) - alpha sum_t m_t log m_t,     m_t = sum of n_v over the items v with codes t

n_v: contexts of v. With alpha = 1, J is the usage-corrected loss (joint/prior.py) of hard codes, up to sign and a
constant: this is its discrete maximiser.

Shape letters: N items, L levels, B contexts, W beams, M candidates of an item, Q pairs of a context's
item and a code tuple, R rows of a search, V tokens of a position.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from scipy.special import xlogy
from torch import Tensor

from data import histories
from joint.moving import JointMethod, MovingOptions
from joint.quantizer import JointRQVAE, QuantizerOptions
from model import SidParts
from recommenders.protocol import Scorer
from settings import option
from sids.search import Children, Trie, beam_search, every_token, sid_key, spell
from sids.table import by_count
from sids.tokenizer import Source
from vq import RQVAEOptions

PIECE = 128  # contexts that are searched at a time
SWEEPS, FEW = 50, 1e-3  # over the catalogue at most; the last one moves at most this share of the items


@dataclass(frozen=True, kw_only=True)
class EMOptions(MovingOptions):
    em_every: int = option(5, "epochs of training between two assignments of semantic IDs", ge=1)
    em_candidates: int = option(
        16, "number of code tuples that an item may choose from, beside the one that it has", ge=1
    )
    em_penalty: float = option(
        1.0, "weight of what it costs items to share their codes; 1 = as the usage-corrected loss has it", ge=0
    )


class EM(JointMethod):
    """Two-stage training whose codes are assigned anew after the epochs `em_every`, 2 `em_every`, ..., from 0."""

    option_groups: ClassVar[dict[str, type]] = {"codes by alternation": EMOptions}
    epoch: Tensor  # epochs that have ended

    def __init__(self, parts: SidParts, tokenizer: JointRQVAE, options: EMOptions) -> None:
        super().__init__(parts, tokenizer.requires_grad_(False))
        self.options, self.told = options, dict[str, float]()
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))

    @classmethod
    def tokenizer_of(cls, codes: RQVAEOptions, n_input: int, seed: int, *groups: Any) -> JointRQVAE:
        return JointRQVAE(codes, QuantizerOptions(), n_input, seed)

    def attach(self, source: Source, longest: int) -> None:
        self.contexts, self.longest = source.train, longest
        self.set_codes(self.tokenizer.encode(source.content_ND))
        super().attach(source, longest)

    def refresh(self) -> dict[str, Any]:
        self.epoch += 1
        return super().refresh() | self.told

    def codes(self) -> Tensor:
        """Those of now, or the best for what the network has learned; every process finds the same."""
        ended, self.told = int(self.epoch) - 1, {}
        if ended < 1 or ended % self.options.em_every or not self.options.moves(ended):
            return self.code_NT
        was = self.training
        self.eval()
        found = self._assigned()
        self.train(was)
        return found

    def _assigned(self) -> Tensor:
        """The codes after a maximisation of J, [N, L]; leaves its figures in `told`."""
        count_N = np.bincount(self.contexts.targets - 1, minlength=self.n_items)
        key_NM = self.candidates()
        best = maximise(key_NM, self.likelihoods(key_NM), count_N, self.options.em_penalty, self.ends or self.n_items)
        before, *_, after = (value / max(len(self.contexts), 1) for value in best.objective)
        self.told = {"em/objective_before": before, "em/objective": after}  # nats a context
        key_N = torch.from_numpy(key_NM[np.arange(self.n_items), best.choice_N])
        return tuple_of(key_N, self.sizes).to(self.code_NT.device)

    # ---- what the network thinks of code tuples

    def candidates(self) -> np.ndarray:
        """Keys of the code tuples that each item may take, [N, 1 + M]: the one that it has, then those that the beams
        of its contexts give most probability together. Where these are fewer, the one that it has again.
        """
        item, key, weight = [], [], []
        for rows, score in self._pieces():
            found = beam_search(score, Tuples(self.sizes), len(rows), self.search.num_beams, self.code_NT.device)
            real_BW = (found.item_BW > 0).cpu().numpy()
            item.append(np.broadcast_to(self.contexts.targets[rows, None] - 1, real_BW.shape)[real_BW])
            key.append(found.item_BW.cpu().numpy()[real_BW] - 1)
            weight.append(found.score_BW.double().exp().cpu().numpy()[real_BW])
        own_N = sid_key(self.code_NT, list(self.sizes)).cpu().numpy()
        return best_keys(np.concatenate(item), np.concatenate(key), np.concatenate(weight), own_N,
                         self.options.em_candidates)  # fmt: skip

    def likelihoods(self, key_NM: np.ndarray) -> np.ndarray:
        """sum_h log p(tuple | h) of each item's candidates, [N, M], float64."""
        sum_NM = torch.zeros(key_NM.shape, dtype=torch.double)
        for rows, score in self._pieces():
            item_B = self.contexts.targets[rows] - 1
            key_BM = torch.from_numpy(key_NM[item_B]).to(self.code_NT.device)
            logp_BM = spell(score, Tuples(self.sizes), tuple_of(key_BM, self.sizes))
            sum_NM.index_add_(0, torch.from_numpy(item_B).long(), logp_BM.double().cpu())
        return sum_NM.numpy()

    def _pieces(self) -> Iterator[tuple[np.ndarray, Scorer]]:
        """Some contexts at a time, those of like length together, and what scores the tokens that follow them."""
        order = np.argsort(self.contexts.lengths(self.longest), kind="stable")
        for begin in range(0, len(order), PIECE):
            rows = order[begin : begin + PIECE]
            history_BS = torch.from_numpy(histories(self.contexts, rows, self.longest)[0].astype(np.int64))
            with torch.inference_mode():
                history_BS = history_BS.to(self.code_NT.device)
                score = self.recommender.scorer(lambda item: self.sids.tokens(item).token, history_BS)
            yield rows, if_legal(score, self.trie()) if self.search.legal_softmax else score


class Tuples:
    """Every code tuple there may be, as a tree for the search; a tuple's item is its key, from 1."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.vocabulary = list(sizes)

    def children(self, position: int, node: Tensor) -> Children:
        return every_token(node, self.vocabulary[position])

    def items_of(self, leaf: Tensor) -> Tensor:
        return leaf[..., None] + 1


def tuple_of(key: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The codes [..., L] behind keys [...], see `sid_key`."""
    codes = []
    for size in reversed(sizes):
        codes.append(key % size)
        key = key // size
    return torch.stack(codes[::-1], -1)


def if_legal(score: Scorer, trie: Trie) -> Scorer:
    """Log-probabilities of tokens under legal_softmax, of those that are not legal yet as if they were: normalised over
    the tokens that exist and the one that is asked about. Behind a prefix that nobody has: over all.
    """
    node_R = torch.zeros(0, dtype=torch.long)  # of the trie, -1 where there is none

    def scored(
        position: int, token_R: Tensor | None, parent_R: Tensor | None, candidates_RC: Tensor | None = None
    ) -> Tensor:
        """The scorer's log-probabilities, normalised over the tokens that exist."""
        nonlocal node_R
        logp_RV = score(position, token_R, parent_R)
        if token_R is None or parent_R is None:
            node_R = token_R = torch.zeros(len(logp_RV), dtype=torch.long, device=logp_RV.device)
        else:
            node_R = node_R[parent_R]
            child = trie.children(position - 1, node_R.clamp(min=0))
            hit_RC = child.there & (child.token == token_R[:, None]) & (node_R >= 0)[:, None]
            at_R1 = hit_RC.int().argmax(1, keepdim=True)
            node_R = child.node.long().gather(1, at_R1)[:, 0].where(hit_RC.any(1), -1)
        child = trie.children(position, node_R.clamp(min=0))
        open_RV = torch.zeros(len(logp_RV), logp_RV.shape[1] + 1, dtype=torch.bool, device=logp_RV.device)
        open_RV = open_RV.scatter_(1, child.token.masked_fill(~child.there, logp_RV.shape[1]), True)[:, :-1]
        open_RV &= (node_R >= 0)[:, None]
        sum_R1 = logp_RV.masked_fill(~open_RV, -torch.inf).logsumexp(1, keepdim=True)
        with_it_RV = torch.where(open_RV, sum_R1, torch.logaddexp(logp_RV, sum_R1))
        return torch.where(node_R[:, None] >= 0, logp_RV - with_it_RV, logp_RV)

    return scored


# ---------------------------------------------------------------- the assignment


def best_keys(item_Q: np.ndarray, key_Q: np.ndarray, weight_Q: np.ndarray, own_N: np.ndarray, most: int) -> np.ndarray:
    """Each item's own key and behind it its `most` others of the largest summed weight, [N, 1 + most]; its own again
    where it has fewer. Equal weights: the smaller key.
    """
    order_Q = np.lexsort((key_Q, item_Q))
    item_Q, key_Q, weight_Q = item_Q[order_Q], key_Q[order_Q], weight_Q[order_Q]
    begin = np.flatnonzero(np.diff(item_Q, prepend=-1) | np.diff(key_Q, prepend=-1))
    item, key, weight = item_Q[begin], key_Q[begin], np.add.reduceat(weight_Q, begin)
    other = key != own_N[item]
    item, key, weight = item[other], key[other], weight[other]
    order = np.lexsort((key, -weight, item))
    item, key = item[order], key[order]
    rank = np.arange(len(item)) - np.searchsorted(item, item)
    key_NM = np.repeat(own_N[:, None], 1 + most, 1)
    key_NM[item[rank < most], 1 + rank[rank < most]] = key[rank < most]
    return key_NM


class Best(NamedTuple):
    choice_N: np.ndarray  # column of each item's candidate
    objective: list[float]  # J at first, and after each sweep; it never falls


def maximise(key_NM: np.ndarray, score_NM: np.ndarray, count_N: np.ndarray, alpha: float, most: int) -> Best:
    """Coordinate ascent of J: item by item, by falling count, the best candidate while all others stay; sweep by sweep,
    until few move. Candidate 0 is where an item is, and stays where none is better; at most `most` items share a tuple.
    An item without a context stays.
    """
    _, tuple_NM = np.unique(key_NM, return_inverse=True)
    tuple_NM = tuple_NM.reshape(key_NM.shape)
    choice_N, rows = np.zeros(len(key_NM), np.int64), np.arange(len(key_NM))
    mass = np.bincount(tuple_NM[:, 0], count_N, minlength=int(tuple_NM.max()) + 1)
    held = np.bincount(tuple_NM[:, 0], minlength=len(mass))

    def objective() -> float:
        return float(score_NM[rows, choice_N].sum() - alpha * xlogy(mass, mass).sum())

    trace, order = [objective()], [v for v in by_count(count_N) if count_N[v]]
    for _ in range(SWEEPS):
        moved = 0
        for v in order:
            n, tuple_M, now = count_N[v], tuple_NM[v], choice_N[v]
            mass[tuple_M[now]] -= n
            held[tuple_M[now]] -= 1
            mass_M = mass[tuple_M]
            value_M = score_NM[v] - alpha * (xlogy(mass_M + n, mass_M + n) - xlogy(mass_M, mass_M))
            value_M[held[tuple_M] >= most] = -np.inf
            if value_M[best := int(value_M.argmax())] > value_M[now]:
                choice_N[v] = best
                moved += 1
            mass[tuple_M[choice_N[v]]] += n
            held[tuple_M[choice_N[v]]] += 1
        trace.append(objective())
        if moved <= FEW * len(key_NM):
            break
    return Best(choice_N, trace)
