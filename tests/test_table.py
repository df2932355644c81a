"""The table of SIDs: tokens by hand, unlike lengths, items that share a SID, search against brute force."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sids.search import beam_search
from sids.table import SidTable, collision_rate, end_tokens, ended, numbered, perplexity, suffixes
from utils import Problem


def table(codes, end=None, sizes=(4, 4, 4), ends=0):
    longest = max(map(len, codes))
    code_NT = torch.tensor([[*c, *[-1] * (longest - len(c))] for c in codes], dtype=torch.int32)
    return SidTable(code_NT, None if end is None else torch.tensor(end), tuple(sizes[:longest]), ends)


class Table:
    """Log-probabilities that depend on place, last token and user, over what the table's vocabulary has."""

    def __init__(self, sids, users, seed=0):
        generator = torch.Generator().manual_seed(seed)
        widest = max(sids.vocabulary)
        self.logits = [torch.randn(users, widest, v, generator=generator) for v in sids.vocabulary]
        self.sids, self.users = sids, users

    def log_probs(self, place):
        """What is behind an item's end costs nothing: a finished item goes on with probability one."""
        logits = self.logits[place].clone()
        if self.sids.even:
            return logits.log_softmax(-1)
        return torch.cat([logits[..., :-1].log_softmax(-1), torch.zeros_like(logits[..., :1])], -1)

    def __call__(self, place, token_R, parent_R):
        rows = self.users if token_R is None else len(token_R)
        user = torch.arange(self.users).repeat_interleave(rows // self.users)
        last = torch.zeros(rows, dtype=torch.long) if token_R is None else token_R
        return self.log_probs(place)[user, last]

    def score(self, user, item):
        total, last = 0.0, 0
        for place, token in enumerate(self.sids.token_NP[item - 1].tolist()):
            total += float(self.log_probs(place)[user, last, token])
            last = token
        return total


def brute_force(model, sids, user):
    """Item numbers by score, equal scores in catalogue order."""
    return sorted(range(1, sids.n_items + 1), key=lambda item: (-round(model.score(user, item), 4), item))


# ---------------------------------------------------------------- tokens


def test_end_tokens_by_hand():
    code_NT = torch.tensor([[0, 1], [3, 2], [0, 1], [0, 2], [0, 1]])
    assert ended(code_NT, "suffix", 4).tolist() == [0, 0, 1, 0, 2]
    assert ended(code_NT, "item", 6).tolist() == [1, 0, 3, 0, 5]
    assert (end_tokens("suffix", (8, 4), 5), end_tokens("item", (8, 4), 5)) == (4, 6)
    with pytest.raises(Problem, match="3 items share one code, dedup tokens tell 2 apart"):
        ended(code_NT, "suffix", 2)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=30))
def test_either_rule_tells_items_apart_and_gives_strangers_nothing(codes):
    """No two items have one SID; one that stands alone needs no dedup token of its own; and an item that does not
    move keeps its `item` token whatever the others do.
    """
    code_NT = torch.tensor(codes)
    for rule in ("suffix", "item"):
        end_N = ended(code_NT, rule, 99)
        assert len({(*c, e) for c, e in zip(codes, end_N.tolist(), strict=True)}) == len(codes)
        assert all(e == 0 for c, e in zip(codes, end_N.tolist(), strict=True) if codes.count(c) == 1)
    moved = code_NT.clone()
    moved[0] += 5
    before, after = ended(code_NT, "item", 99), ended(moved, "item", 99)
    assert all(a in (b, 0) for a, b in zip(after[1:].tolist(), before[1:].tolist(), strict=True))


def test_equal_lengths_put_the_end_token_last():
    sids = table([(0, 1), (3, 2), (0, 1)], [0, 0, 1], ends=4)
    assert sids.even and sids.vocabulary == (4, 4, 4)
    assert sids.token_NP.tolist() == [[0, 1, 0], [3, 2, 0], [0, 1, 1]]
    assert sids.real_NP.all() and sids.length_N.tolist() == [2, 2, 2]
    assert sids.tokens(torch.tensor([[3, 0]])).token[0, 0].tolist() == [0, 1, 1]


def test_unlike_lengths_end_where_the_code_ends():
    """Golden example: A (1, 4), B (1, 2, 4), C (1, 2, 5) ... as codes with dedup tokens 0 and 1."""
    sids = table([(1,), (1, 2), (1, 2), (2, 3, 1), (3,)], [0, 0, 1, 0, 0], ends=2)
    assert not sids.even and sids.vocabulary == (7, 7, 7, 3)
    assert sids.length_N.tolist() == [1, 2, 2, 3, 1]
    behind = [4 + 2, 4 + 2, 4 + 2, 0 + 2]
    assert sids.token_NP.tolist() == [
        [1, 4, behind[2], behind[3]],
        [1, 2, 4, behind[3]],
        [1, 2, 5, behind[3]],
        [2, 3, 1, 0],
        [3, 4, behind[2], behind[3]],
    ]
    assert sids.real_NP.sum(1).tolist() == [2, 3, 3, 4, 2]


def test_unlike_lengths_need_end_tokens():
    with pytest.raises(ValueError, match="need dedup tokens"):
        _ = table([(1,), (1, 2)]).token_NP


def test_figures_count_only_the_codes_that_are_there():
    figures = table([(3, 1), (3,), (2, 1), (3, 2)], [0, 0, 0, 0], ends=1).figures()
    assert figures["codes_used/level_1"] == 2 and figures["codes_used/level_2"] == 2
    assert figures["perplexity/level_1"] == pytest.approx(1.7547654)
    assert figures["perplexity/level_2"] == pytest.approx(1.8898816)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_suffixes_number_each_group_in_catalogue_order(codes):
    got = suffixes(torch.tensor(codes)).tolist()
    seen: dict = {}
    for code, suffix in zip(codes, got, strict=True):
        assert suffix == seen.get(code, 0)
        seen[code] = suffix + 1


def test_usage_figures_by_hand():
    used, spread = perplexity(torch.tensor([0, 0, 1, 1, 3, 3]), 5)
    assert used == 3 and spread == pytest.approx(3.0)
    assert perplexity(torch.tensor([2, 2]), 5) == (1, pytest.approx(1.0))
    assert collision_rate(torch.tensor([[0, 1], [0, 1], [1, 1], [0, 1]])) == pytest.approx(0.5)


# ---------------------------------------------------------------- search


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_a_wide_beam_over_unlike_lengths_equals_brute_force(seed):
    random = torch.Generator().manual_seed(seed)
    every = [c for n in (1, 2, 3) for c in itertools.product(range(4), repeat=n)]
    codes = [every[i] for i in torch.randint(len(every), (12,), generator=random)]  # some are shared
    seen: dict[tuple, int] = {}
    ends = []
    for code in codes:
        ends.append(seen.get(code, 0))
        seen[code] = ends[-1] + 1
    sids = table(codes, ends, ends=max(ends) + 1)
    model = Table(sids, 2, seed)
    found = beam_search(model, sids.trie(), 2, 200, torch.device("cpu"))
    for user in range(2):
        assert [i for i in found.item_BW[user].tolist() if i] == brute_force(model, sids, user)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_items_of_one_sid_come_together_in_catalogue_order(seed, n):
    random = torch.Generator().manual_seed(seed)
    sids = table([tuple(c) for c in torch.randint(4, (n, 2), generator=random).tolist()])
    model = Table(sids, 2, seed)
    trie = sids.trie()
    found = beam_search(model, trie, 2, 16, torch.device("cpu"))
    for user in range(2):
        got = [i for i in found.item_BW[user].tolist() if i]
        assert got == brute_force(model, sids, user)
    excluded = torch.tensor([[1, 0], [2, min(3, n)]])
    barred = beam_search(model, trie, 2, 16, torch.device("cpu"), excluded)
    for user in range(2):
        want = [i for i in brute_force(model, sids, user) if i not in excluded[user].tolist()]
        assert [i for i in barred.item_BW[user].tolist() if i] == want


def test_a_tree_of_some_items_holds_those_of_a_shared_sid_that_were_asked_for():
    sids = table([(0, 1), (0, 1), (0, 1), (2, 2)])
    some = torch.tensor([3, 1, 4])
    found = beam_search(Table(sids, 1), sids.trie(some), 1, 4, torch.device("cpu"))
    assert sorted(i for i in found.item_BW[0].tolist() if i) == [1, 3, 4]


def test_a_leaf_lists_its_items_and_pads_with_none():
    trie = table([(0, 1), (2, 2), (0, 1), (0, 1)]).trie()
    assert trie.items_of(torch.tensor([0, 1, -1])).tolist() == [[1, 3, 4], [2, 0, 0], [0, 0, 0]]


GOLDEN = {"A": (1, 4), "B": (1, 2, 4), "C": (1, 2, 5), "D": (2, 3, 1, 4), "E": (3, 4)}  # tokens 1-3 codes, 4-5 ends
AFTER = {
    0: (0.5, 0.3, 0.2, 0, 0),
    1: (0.1, 0.4, 0.1, 0.3, 0.1),
    2: (0.1, 0.1, 0.3, 0.3, 0.2),
    3: (0.3, 0.1, 0.1, 0.4, 0.1),
}


def golden_score(sids):
    """The golden example's bigram model over the table's tokens: 0 means no token before."""

    def score(place, token_R, parent_R):
        rows = []
        for last in [0] if token_R is None else token_R.tolist():
            p = torch.zeros(sids.vocabulary[place])
            told = AFTER[last if last < 4 else 0]
            codes = sids.vocabulary[place] - 3
            p[1:codes] = torch.tensor(told[:3])[: max(0, codes - 1)]
            p[codes : codes + 2] = torch.tensor(told[3:])
            rows.append(p.log())
        return torch.stack(rows)

    return score


@pytest.mark.parametrize(("beams", "want"), [(1, "A"), (2, "AB"), (3, "AEB"), (4, "AEBC"), (5, "AEBCD")], ids=str)
def test_ended_hypotheses_take_no_beam(beams, want):
    """Golden example: items that have ended crowd nobody out; two beams lose E, whose first token comes third."""
    sids = table([(1,), (1, 2), (1, 2), (2, 3, 1), (3,)], [0, 0, 1, 0, 0], ends=2)
    found = beam_search(golden_score(sids), sids.trie(), 1, beams, torch.device("cpu"))
    assert "".join(" ABCDE"[i] for i in found.item_BW[0].tolist()).strip() == want
    p = {"A": 0.15, "E": 0.08, "B": 0.06, "C": 0.04, "D": 0.0081}
    assert found.score_BW[0].exp().tolist() == pytest.approx([p[name] for name in want], rel=1e-5)


def test_the_softmax_over_what_may_follow_ranks_otherwise():
    """Golden example: D .3, A .2143, E .2, B .1714, C .1143."""
    sids = table([(1,), (1, 2), (1, 2), (2, 3, 1), (3,)], [0, 0, 1, 0, 0], ends=2)
    found = beam_search(golden_score(sids), sids.trie(), 1, 5, torch.device("cpu"), legal_softmax=True)
    assert found.item_BW[0].tolist() == [4, 1, 5, 2, 3]
    assert found.score_BW[0].exp().tolist() == pytest.approx([0.3, 0.2142857, 0.2, 0.1714286, 0.1142857], rel=1e-5)


def test_of_unlike_lengths_too_banned_items_never_come_and_free_their_place():
    sids = table([(1,), (1, 2), (1, 2), (2, 3, 1), (3,)], [0, 0, 1, 0, 0], ends=2)
    found = beam_search(golden_score(sids), sids.trie(), 1, 5, torch.device("cpu"), torch.tensor([[1, 5, 0]]))
    assert [i for i in found.item_BW[0].tolist() if i] == [2, 3, 4]
    few = beam_search(golden_score(sids), sids.trie(torch.tensor([3, 4])), 1, 5, torch.device("cpu"))
    assert few.item_BW[0].tolist() == [3, 4, 0, 0, 0] and few.score_BW[0, 2] == -torch.inf


def test_banned_items_of_one_code_leave_the_search_over_unlike_lengths_the_others():
    """Thirty items of one code and one that goes on: with the best of them excluded, a list is full of the rest."""
    sids = table([(1,)] * 30 + [(2, 3)], [*range(30), 0], ends=30)
    model = Table(sids, 1)
    free = brute_force(model, sids, 0)
    found = beam_search(model, sids.trie(), 1, 10, torch.device("cpu"), torch.tensor([free[:10]]))
    assert found.item_BW[0].tolist() == free[10:20]


def test_end_tokens_go_by_falling_count_then_by_row():
    """Golden example: counts 9, 4, 3, 4 of codes (5), (5, 2), (5), (5, 2)."""
    code_NT = torch.tensor([[5, -1], [5, 2], [5, -1], [5, 2]])
    assert numbered(code_NT, np.array([9, 4, 3, 4])).tolist() == [0, 0, 1, 1]
    assert numbered(code_NT, np.array([3, 4, 9, 5])).tolist() == [1, 1, 0, 0]
