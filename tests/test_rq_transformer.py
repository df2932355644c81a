"""Networks with a target a position (RQ-Transformer, decoder): search and training agree, padding and certain tokens
change nothing; the soft label is the dense one.
"""

import pytest
import torch
import torch.nn.functional as F

from data import Batch
from layers import depth_attention, soft_label_loss
from recommenders.decoder import Decoder
from recommenders.rq_transformer import RQTransformer
from sids.legal import Legal
from sids.search import beam_search
from sids.table import SidTable, end_tokens, ended
from sids.tokenizer import Quantized

SIZES = (6, 5, 4)
N = 20


def network(ends=3, kind=RQTransformer, **options):
    torch.manual_seed(0)
    cfg = kind.Options(d_model=16, d_ff=32, num_heads=2, **options)
    return kind(cfg, (*SIZES, ends), 8, N).eval()


both = pytest.mark.parametrize("kind", [RQTransformer, Decoder])


def table(count=N):
    """Distinct SIDs."""
    key = torch.randperm(360, generator=torch.Generator().manual_seed(1))[:count]
    code_NT = torch.stack([key // 60, key // 12 % 5, key // 3 % 4], 1)
    return SidTable(code_NT.int(), (key % 3).int(), SIZES, 3)


def batch_of(history, target):
    size = max(map(len, history))
    history_BS = torch.tensor([[0] * (size - len(h)) + h for h in history])
    target_B = torch.tensor(target)
    item_U, row = torch.cat([history_BS.flatten(), target_B]).unique(return_inverse=True)
    item_U, row = item_U[1:], (row - 1).clamp(min=0)
    new, weight = torch.ones_like(item_U, dtype=torch.bool), torch.tensor(1.0)
    rows = row[: history_BS.numel()].view_as(history_BS)
    return Batch(history_BS, target_B, target_B, item_U, rows, row[history_BS.numel() :], new, weight)


def tokens(net, sids, item_U):
    token_UP = sids.tokens(item_U).token
    return net.embed(Quantized([token_UP[:, p] for p in range(3)]), token_UP)


BATCH = batch_of([[3, 7, 1], [0, 0, 5], [2, 9]], [4, 8, 11])


@pytest.mark.parametrize(
    ("kind", "options"), [(RQTransformer, {}), (RQTransformer, {"item_embedding": True}), (Decoder, {})]
)
def test_search_scores_are_those_of_training(kind, options):
    net, sids = network(kind=kind, **options), table()
    token_UPh, rows = tokens(net, sids, BATCH.item_U), BATCH.goals("next")
    token_RP = sids.token_NP[BATCH.item_U[rows] - 1]
    logp = sum(
        logits.log_softmax(-1).gather(1, token_RP[:, place, None])[:, 0]
        for place, logits in enumerate(net(token_UPh, BATCH, token_UPh).logits)
    )
    last_R = torch.tensor([2, 3, 5])  # the positions whose target is target_B
    score = net.scorer(lambda item: sids.tokens(item).token, BATCH.history_BS)
    found = beam_search(score, sids.trie(), 3, N, torch.device("cpu"))
    place = (found.item_BW == BATCH.target_B[:, None]).int().argmax(1)
    torch.testing.assert_close(found.score_BW.gather(1, place[:, None])[:, 0], logp[last_R])


@pytest.mark.parametrize("own", [True, False])
def test_whole_items_are_scored_alike_in_training_and_search(own):
    """Against sum_l E_l[c_l] (+ own vector) of every item, written out; the last position of each user."""
    net, sids = network(item_loss=1.0, item_embedding=own), table()
    token_UPh = tokens(net, sids, BATCH.item_U)
    state_Rh = net(token_UPh, BATCH, token_UPh).state_Rh
    item_RN = net.item_logits(state_Rh, net.catalogue(sids.token_NP, BATCH.item_U, token_UPh))
    score = net.scorer(lambda item: sids.tokens(item).token, BATCH.history_BS)
    torch.testing.assert_close(score(4, None, None), net.whole(state_Rh[[2, 3, 5]]))
    vector_BSh = net.encode(net.vectors(token_UPh, BATCH.item_U), BATCH.history_row_BS, BATCH.history_BS)
    asked_h = net.whole(vector_BSh[0, -1])
    for item in (1, 7, N):
        parts = [net.tables[p][sids.token_NP[item - 1, p]] for p in range(4)]
        want = asked_h @ (sum(parts) + (net.own.weight[item] if own else 0))
        torch.testing.assert_close(item_RN[2, item - 1], want)


def test_goals_are_what_follows_each_real_position_in_order():
    assert BATCH.item_U[BATCH.goals("next")].tolist() == [7, 1, 4, 8, 9, 11]
    assert BATCH.item_U[BATCH.goals("one")].tolist() == [4, 8, 11]


@both
def test_padding_changes_nothing(kind):
    net, sids = network(kind=kind), table()
    alone = batch_of([[0, 0, 5]], [8])
    whole, one = (list(net(t := tokens(net, sids, b.item_U), b, t).logits) for b in (BATCH, alone))
    for a, b in zip(whole, one, strict=True):
        torch.testing.assert_close(a[3:4], b[-1:])


@both
def test_a_position_sees_neither_its_target_nor_what_follows(kind):
    net, sids = network(kind=kind), table()
    other = BATCH._replace(target_row_B=BATCH.target_row_B.flip(0))
    t = tokens(net, sids, BATCH.item_U)
    a, b = (torch.stack([y[:, 0] for y in net(t, x, t).logits], 1) for x in (BATCH, other))
    torch.testing.assert_close(a[:2], b[:2])  # positions before the last
    torch.testing.assert_close(a[:, 0], b[:, 0])  # the first token of every position


@both
def test_places_without_a_choice_may_be_left_out(kind):
    net, sids = network(kind=kind), table()
    t = tokens(net, sids, BATCH.item_U)
    open_UP = torch.rand(len(BATCH.item_U), 4, generator=torch.Generator().manual_seed(2)) < 0.5
    open_UP[:, 0] = True
    rows = BATCH.goals("next")
    for place, (some, every) in enumerate(zip(net(t, BATCH, t, open_UP).logits, net(t, BATCH, t).logits, strict=True)):
        torch.testing.assert_close(some, every[open_UP[rows, place]])


def test_depth_attention_is_causal_attention():
    qkv = torch.randn(7, 4, 48, dtype=torch.double)
    q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in qkv.chunk(3, -1))
    whole = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(depth_attention(qkv, 2), whole)


@pytest.mark.parametrize("weight", [1.0, 0.1])
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("rows", [None, 70])
def test_the_soft_label_is_the_dense_one(weight, with_prior, rows):
    random = torch.Generator().manual_seed(0)
    logits, a = (torch.randn(n, 16, dtype=torch.double, generator=random, requires_grad=True) for n in (50, 30))
    index_U, row_R = torch.randint(16, (30,), generator=random), torch.randint(30, (50,), generator=random)
    prior = torch.rand(16, dtype=torch.double, generator=random).log() if with_prior else None
    p = a.softmax(1)
    y = F.one_hot(index_U[row_R], 16) + weight * (p - p.detach())[row_R]
    dense = -(y * logits.log_softmax(1)).sum() / (rows or 50)
    if prior is not None:
        term = (y * prior).sum() / (rows or 50)
        dense = dense + term - term.detach()
    ours = soft_label_loss(logits, index_U[row_R], a.softmax(1), row_R, weight, prior, rows)
    torch.testing.assert_close(ours, dense, rtol=1e-14, atol=0)
    found, want = (torch.autograd.grad(3 * loss, (logits, a)) for loss in (ours, dense))
    for x, z in zip(found, want, strict=True):
        torch.testing.assert_close(x, z, rtol=1e-12, atol=1e-15)


def crowded(rule):
    """Few distinct codes, so that most items share theirs."""
    code_NT = torch.stack([torch.arange(N) % 3, torch.arange(N) % 2, torch.zeros(N, dtype=torch.long)], 1)
    ends = end_tokens(rule, SIZES, N)
    return SidTable(code_NT.int(), ended(code_NT, rule, ends), SIZES, ends)


@both
@pytest.mark.parametrize("kept", [0, 1 << 20])
@pytest.mark.parametrize("make", [table, lambda: crowded("suffix"), lambda: crowded("item")])
def test_the_legal_softmax_is_a_distribution_over_the_items(make, kept, kind):
    sids = make()
    net = network(ends=sids.vocabulary[-1], kind=kind)
    legal, every = Legal(sids, sids.trie(), kept), torch.arange(1, N + 1)
    token_NPh = tokens(net, sids, every)
    batch = batch_of([[7]] * N, every.tolist())
    batch = batch._replace(item_U=every, history_row_BS=torch.full((N, 1), 6), target_row_B=every - 1)
    total_N, open_NP = torch.zeros(N), legal.open(every)
    for place, logits in enumerate(net(token_NPh, batch, token_NPh, open_NP).logits):
        rows = open_NP[:, place]
        logp = logits.masked_fill(~legal.tokens(place, every[rows]), -torch.inf).log_softmax(-1)
        total_N[rows] += logp.gather(1, sids.token_NP[rows, place, None])[:, 0]
    torch.testing.assert_close(total_N.logsumexp(0), torch.tensor(0.0))
    score = net.scorer(lambda item: sids.tokens(item).token, torch.tensor([[7]]))
    found = beam_search(score, sids.trie(), 1, N, torch.device("cpu"), legal_softmax=True)
    torch.testing.assert_close(found.score_BW[0], total_N[found.item_BW[0] - 1])


@pytest.mark.parametrize("with_prior", [False, True])
def test_a_code_that_is_no_choice_is_neither_sought_nor_shunned(with_prior):
    """The gradient at the logits of p is that of a softmax over the choices alone."""
    random = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 8, dtype=torch.double, generator=random)
    row_R = torch.randint(10, (40,), generator=random)
    legal_UK = torch.rand(10, 8, generator=random) < 0.6
    legal_UK[:, 0] = True
    a = torch.randn(10, 8, dtype=torch.double, generator=random, requires_grad=True)
    prior = torch.rand(8, dtype=torch.double, generator=random).log() if with_prior else None
    legal_logits = logits.masked_fill(~legal_UK[row_R], -torch.inf)
    loss = soft_label_loss(legal_logits, torch.zeros(40, dtype=torch.long), a.softmax(1), row_R, 1.0, prior)
    (found,) = torch.autograd.grad(loss, a)
    assert torch.allclose(found[~legal_UK], torch.zeros(1, dtype=torch.double), atol=1e-12)
    q = a.masked_fill(~legal_UK, -torch.inf).softmax(1)
    cost = -legal_logits.log_softmax(1).masked_fill(~legal_UK[row_R], 0) + (0 if prior is None else prior)
    (want,) = torch.autograd.grad((q[row_R] * cost).sum() / 40, a)
    share = (a.softmax(1) * legal_UK).sum(1, keepdim=True).detach()
    assert torch.allclose(found, want * share, atol=1e-12)
