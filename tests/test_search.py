"""The trie and the constrained search against brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sids.search import AllTokens, Trie, beam_search


def random_sids(n, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    every = torch.cartesian_prod(*[torch.arange(k) for k in sizes])
    return every[torch.randperm(len(every), generator=generator)[:n]]


class Table:
    """Scores that depend on level, previous code and user, with no network behind them."""

    def __init__(self, sizes, users, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.sizes = sizes
        self.table = [torch.randn(users, max(sizes), k, generator=generator) for k in sizes]
        self.users = users

    def __call__(self, level, code_R, parent_R):
        rows = self.users if code_R is None else len(code_R)
        user = torch.arange(self.users).repeat_interleave(rows // self.users)
        last = torch.zeros(rows, dtype=torch.long) if code_R is None else code_R
        return self.table[level][user, last].log_softmax(-1)

    def score(self, user, sid):
        """Log-probability of one SID, code by code."""
        total, last = 0.0, 0
        for level, code in enumerate(sid.tolist()):
            total += float(self.table[level][user, last].log_softmax(-1)[code])
            last = code
        return total


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 99))
def test_a_beam_as_wide_as_the_catalogue_equals_scoring_every_item(n, seed):
    sizes = [5, 4, 3, 4]
    sids = random_sids(n, sizes, seed)
    model = Table(sizes, users=3, seed=seed)
    found = beam_search(model, Trie(sids, sizes), 3, n, torch.device("cpu"))
    for user in range(3):
        want = torch.tensor([model.score(user, sid) for sid in sids])
        assert found.item_BW[user].sort().values.tolist() == list(range(1, n + 1))
        assert torch.allclose(found.score_BW[user], want.sort(descending=True).values, atol=1e-5)
        assert torch.allclose(want[found.item_BW[user] - 1], found.score_BW[user], atol=1e-5)


def test_a_tree_of_some_items_finds_the_best_of_them():
    sizes = [6, 5, 4]
    sids = random_sids(30, sizes, 1)
    model, some = Table(sizes, 4), torch.tensor([3, 4, 11, 17, 25, 30])
    found = beam_search(model, Trie(sids[some - 1], sizes, some), 4, 6, torch.device("cpu"))
    for user in range(4):
        want = sorted(some.tolist(), key=lambda item: -model.score(user, sids[item - 1]))
        assert found.item_BW[user].tolist() == want


def test_narrow_beams_only_return_items_best_first():
    sizes = [6, 5, 4]
    sids = random_sids(30, sizes, 1)
    found = beam_search(Table(sizes, 4), Trie(sids, sizes), 4, 7, torch.device("cpu"))
    assert found.item_BW.shape == (4, 7)
    assert (found.item_BW >= 1).all() and (found.item_BW <= 30).all()
    assert all(len(set(row.tolist())) == 7 for row in found.item_BW)
    assert (found.score_BW.diff(dim=1) <= 0).all()


def test_fewer_items_than_beams_leave_empty_places():
    sids = torch.tensor([[0, 1], [1, 1], [1, 0]])
    found = beam_search(Table([2, 2], 1), Trie(sids, [2, 2]), 1, 10, torch.device("cpu"))
    items = found.item_BW[0].tolist()
    assert sorted(i for i in items if i) == [1, 2, 3]


def test_banned_items_never_appear_and_the_rest_keep_their_order():
    sizes = [4, 4, 3]
    sids = random_sids(25, sizes, 3)
    model, trie = Table(sizes, 2), Trie(sids, sizes)
    free = beam_search(model, trie, 2, 25, torch.device("cpu")).item_BW
    excluded = torch.stack([free[0, [0, 3]], free[1, [1, 2]]])
    found = beam_search(model, trie, 2, 25, torch.device("cpu"), excluded).item_BW
    for user in range(2):
        want = [i for i in free[user].tolist() if i not in excluded[user].tolist()]
        assert [i for i in found[user].tolist() if i] == want


def test_banned_leaves_take_no_beam_where_items_share_sids():
    """Twelve SIDs, of which the last has two items: with four excluded the five best of the others come."""
    sids = torch.cat([torch.arange(12), torch.tensor([11])])[:, None]
    model, trie = Table([12], 1), Trie(sids, [12], shared=True)
    score = torch.tensor([model.score(0, sid) for sid in sids])
    best = (score.sort(descending=True, stable=True).indices + 1).tolist()
    for excluded in (best[:4], [12, 13], [12, *best[:3]]):
        found = beam_search(model, trie, 1, 5, torch.device("cpu"), torch.tensor([excluded])).item_BW[0].tolist()
        assert found[:5] == [i for i in best if i not in excluded][:5]


def test_unconstrained_search_finds_the_best_tuples_and_marks_invalid_ones():
    sizes = [3, 3, 2]
    sids = random_sids(9, sizes, 5)
    model = Table(sizes, 1)
    every = torch.cartesian_prod(*[torch.arange(k) for k in sizes])
    want = torch.tensor([model.score(0, s) for s in every]).sort(descending=True)
    found = beam_search(model, AllTokens(Trie(sids, sizes)), 1, 18, torch.device("cpu"))
    assert torch.allclose(found.score_BW[0], want.values, atol=1e-5)
    number = {tuple(s): i for i, s in enumerate(sids.tolist(), 1)}
    assert found.item_BW[0].tolist() == [number.get(tuple(every[i].tolist()), 0) for i in want.indices]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 120), st.integers(0, 99))
def test_children_are_exactly_the_continuations_that_exist(n, seed):
    sizes = [7, 5, 6]
    sids = random_sids(n, sizes, seed)
    trie = Trie(sids, sizes)
    nodes = {(): 0}
    for level in range(3):
        following = {}
        for prefix, node in nodes.items():
            child = trie.children(level, torch.tensor([node]))
            got = {int(c): int(m) for c, m, t in zip(child.token[0], child.node[0], child.there[0], strict=True) if t}
            assert set(got) == {s[level] for s in sids.tolist() if tuple(s[:level]) == prefix}
            following |= {(*prefix, c): m for c, m in got.items()}
        nodes = following
    assert {p: int(trie.items_of(torch.tensor(m))) for p, m in nodes.items()} == {
        tuple(s): i for i, s in enumerate(sids.tolist(), 1)
    }


def test_equal_sids_are_refused():
    with pytest.raises(ValueError, match="share"):
        Trie(torch.tensor([[1, 2], [1, 2]]), [4, 4])


def test_a_trie_costs_at_most_32_bytes_an_item():
    sizes = [256, 256, 256, 256]
    sids = torch.stack(
        [torch.randint(0, 256, (20000,)) for _ in range(3)] + [torch.zeros(20000, dtype=torch.long)], 1
    ).unique(dim=0)
    trie = Trie(sids, sizes)
    tensors = [trie.item_N, trie.key_M, *trie.begin, *trie.token]
    assert sum(t.numel() * t.element_size() for t in tensors) <= 32 * len(sids)


def test_unconstrained_search_bans_items_and_not_invalid_codes():
    """Padding of the excluded list is 0, and so is the number of a SID that no item has."""
    sizes = [3, 3, 2]
    sids = random_sids(9, sizes, 5)
    model, tree = Table(sizes, 2), AllTokens(Trie(sids, sizes))
    free = beam_search(model, tree, 2, 18, torch.device("cpu")).item_BW
    excluded = torch.tensor([[int(free[0].max()), 0], [1, 2]])
    found = beam_search(model, tree, 2, 18, torch.device("cpu"), excluded)
    for user in range(2):
        alive = found.item_BW[user][found.score_BW[user] > -torch.inf].tolist()
        assert sorted(alive) == sorted(i for i in free[user].tolist() if i == 0 or i not in excluded[user].tolist())
