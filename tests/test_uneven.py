"""The recommender over SIDs of unlike length: what it computes and costs, and that equal lengths change nothing."""

import numpy as np
import pytest
import torch
from conftest import tiny_at
from helpers import LM, SHARED

from compose import build, configure, parts
from data import Shape, Steps, epoch_plan, histories, make_batch, recent, seen_items, sequences, within
from layers import are_real
from readers.layouts import read_dataset
from readers.splits import DataOptions, Split
from recommenders.protocol import unsound
from sids.cut import codes_of
from sids.files import to_index
from sids.search import spell
from utils import Problem

NETWORKS = list(parts.NETWORKS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(options, data) with a residual k-means whose codes can be cut."""
    root = tmp_path_factory.mktemp("variable_length")
    options = tiny_at(root) | {"method": "two_stage", "tokenizer": "rq_kmeans", "max_shared": 1.0}
    cfg = configure.build(options)
    data = read_dataset(cfg[DataOptions])
    build.train_tokenizer(cfg, data)
    return options, data


def model_of(place, **more):
    options, data = place
    torch.manual_seed(1)
    more = LM.get(more.get("recommender"), {}) | more
    return build.build_model(configure.build(options | more), data).model.eval()


def batch_of(data, rows):
    return make_batch(data.train, np.array(rows), 50)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("legal", [False, True])
def test_the_loss_is_minus_the_mean_log_probability_that_the_search_gives(place, network, legal):
    """Two roads to one number: teacher-forced training, and a search that is wide enough for the whole catalogue."""
    _, data = place
    model = model_of(place, target_length=1.7, recommender=network, legal_softmax=legal, num_beams=40)
    assert len(set(model.sids.length_N.tolist())) > 1
    split = data.valid
    batch = make_batch(split, np.arange(12), 50)
    if model.targets == "next":  # of a whole sequence every position is a target; compare histories of one item
        batch = make_batch(split, np.arange(12), 1)
    with torch.no_grad():
        loss = float(model(batch)[0])
        found = model.recommend(batch.history_BS, 40)
    assert (found.item_BW.sort(1).values == torch.arange(1, 41)).all()  # distinct, legal, all of them
    own = (found.item_BW == batch.target_B[:, None]).float() * found.score_BW
    assert -float(own.sum(1).mean()) / len(model.sids.vocabulary) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("network", ["t5", "rq_transformer"])
@pytest.mark.parametrize("legal", [False, True])
def test_the_loss_of_whole_items_where_all_targets_are_short(place, network, legal):
    """As the scorer of a search tells it, also in a batch none of whose targets needs the last places."""
    _, data = place
    model = model_of(place, target_length=1.7, recommender=network, legal_softmax=legal, item_loss=1.0)
    short = np.flatnonzero(model.sids.length_N.numpy()[data.train.targets - 1] == 1)[:8]
    batch = make_batch(data.train, short, 1)
    with torch.no_grad():
        whole = float(model(batch)[0])
        score = model.recommender.scorer(lambda item: model.sids.tokens(item).token, batch.history_BS)
        score(0, None, None)
        query_Bh = score(len(model.sids.vocabulary), None, None)
        item_BN = (query_Bh @ model._item_table(torch.arange(model.n_items)).T).log_softmax(-1)
        model.recommender.item_loss = 0.0
        alone = float(model(batch)[0])
    assert len(short) > 1 and whole - alone == pytest.approx(
        -float(item_BN.gather(1, batch.target_B[:, None] - 1).mean()), rel=1e-4
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_what_stands_behind_an_end_changes_nothing_and_learns_nothing(place, network):
    _, data = place
    model = model_of(place, target_length=1.7, recommender=network)
    batch = batch_of(data, range(20))
    model(batch)[0].backward()
    loss = float(model(batch)[0].detach())
    for table in model.recommender.tables:
        assert not table.grad[-1].any() and table.grad.any()
        table.data[-1] = 1e3
    assert float(model(batch)[0].detach()) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("legal", [False, True])
def test_one_user_alone_gets_what_he_gets_among_others(place, network, legal):
    _, data = place
    model = model_of(place, target_length=1.7, recommender=network, legal_softmax=legal)
    batch = make_batch(data.test, np.arange(20), 50)
    together = model.recommend(batch.history_BS, 10)
    for user in (0, 7, 19):
        alone = model.recommend(batch.history_BS[user : user + 1], 10)
        assert alone.item_BW[0].tolist() == together.item_BW[user].tolist()
        assert torch.allclose(alone.score_BW[0], together.score_BW[user], atol=1e-4)


def test_an_encoder_reads_the_real_tokens_alone(place):
    """Tokens that T5's encoder sees: those of the items, none behind an end."""
    _, data = place
    model = model_of(place, target_length=1.7, recommender="t5")
    seen = []
    encode = model.recommender.t5.encode
    model.recommender.t5.encode = lambda x, keep: (seen.append(keep), encode(x, keep))[1]
    batch = make_batch(data.test, np.arange(8), 50)
    model(batch)
    items = batch.history_BS
    tokens_B = ((model.sids.length_N + 1)[items.clamp(min=1) - 1] * (items > 0)).sum(1)
    assert seen[0].sum(1).tolist() == tokens_B.tolist()
    assert seen[0].shape[1] == int(tokens_B.max()) < items.shape[1] * 4


def test_a_depth_decoder_spells_real_tokens_alone(place):
    """Rows that the depth stack works on: one for each real token of each target."""
    _, data = place
    model = model_of(place, target_length=1.7, recommender="rq_transformer")
    rows = []
    forward = model.recommender.depth.forward
    model.recommender.depth.forward = lambda x, attends: (rows.append(len(x)), forward(x, attends))[1]
    batch = batch_of(data, range(20))
    model(batch)
    goal = batch.item_U[batch.goals("next")]
    assert rows == [int((model.sids.length_N + 1)[goal - 1].sum())]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("legal", [False, True])
def test_equal_lengths_are_bit_for_bit_what_they_were(place, network, legal):
    """A target that every item's whole code meets gives the model, losses and lists of no target at all."""
    options, data = place
    plain = model_of(place, recommender=network, legal_softmax=legal)
    torch.manual_seed(1)
    chosen = {"recommender": network, "legal_softmax": legal, "target_length": 3.0} | LM.get(network, {})
    cfg = configure.build(options | chosen)
    model = build.empty_model(cfg, data.n_items, code_NT=plain.code_NT).eval()
    model.set_codes(plain.code_NT)
    model.load_state_dict(plain.state_dict())
    batch = batch_of(data, range(20))
    assert float(model(batch)[0]) == float(plain(batch)[0])
    ours, theirs = (m.recommend(batch.history_BS, 10) for m in (model, plain))
    assert torch.equal(ours.item_BW, theirs.item_BW) and torch.equal(ours.score_BW, theirs.score_BW)


def test_codes_of_one_shorter_length_are_those_of_a_tokenizer_with_fewer_levels(place):
    options, data = place
    cfg = configure.build(options | {"target_length": 2.0})
    code_NT = torch.tensor([[1, 2, -1]]).expand(data.n_items, -1)
    assert build.vocabulary_of(cfg, 40, code_NT) == build.vocabulary_of(
        configure.build(options | {"num_emb_list": [8, 8]}), 40
    )


def test_the_end_of_a_popular_item_is_the_first_and_sids_travel_as_shorter_lists(place):
    _, data = place
    model = model_of(place, target_length=1.7)
    count_N, groups = data.popularity[1:], model.sids.groups()[1:].numpy()
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        order = rows[np.argsort(-count_N[rows], kind="stable")]
        assert model.end_N[order].tolist() == list(range(len(rows)))
    lists = list(to_index(model.sids).values())
    assert [len(row) - 1 for row in lists] == model.sids.length_N.tolist()
    assert all(row[-1].startswith("<z_") for row in lists) and len({tuple(row) for row in lists}) == len(lists)


def test_lengths_cost_what_was_asked_for(place):
    options, data = place
    cfg = configure.build(options | {"target_length": 1.7})
    tokenizer = build.tokenizer_of(cfg, data)
    code_NT, _ = codes_of(tokenizer, np.load(data.embedding_path), data.popularity[1:])
    share_N = data.popularity[1:] / data.popularity[1:].sum()
    assert 1.5 < float(share_N @ (code_NT >= 0).sum(1).numpy()) <= 1.7


def test_what_cannot_go_with_unlike_lengths_is_refused(place):
    options, _ = place
    for more, match in (
        ({"method": "diger", "tokenizer": "rqvae"}, "use method: two_stage"),
        ({"constrained": False}, "which constrained: false rules out"),
        ({"target_length": 3.5}, "target_length: 3.5 codes of 3 levels"),
        ({"target_length": 0.5}, "target_length"),
    ):
        with pytest.raises(Problem, match=match):
            configure.build(options | {"target_length": 2.0} | more)
    with pytest.raises(Problem, match="allow it with --max_shared="):
        model_of(place, target_length=1.0, max_shared=0.2)


def test_real_tokens_are_told_by_the_last_of_their_place():
    token = torch.tensor([[[0, 6], [6, 2]]])
    assert are_real(token, (7, 3)).tolist() == [[[True, True], [False, False]]]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/datasets")
@pytest.mark.parametrize("network", NETWORKS)
def test_on_real_data_as_many_beams_as_items_are_brute_force_and_few_give_ten_others(tmp_path, network):
    """50 test users of `scientific`: every item's own log-probability, sorted; short lists are of distinct items and
    the same alone and in a batch of 50.
    """
    options = {"dataset": "scientific", "data_path": str(SHARED), "output_dir": str(tmp_path), "method": "two_stage",
               "tokenizer": "rq_kmeans", "num_emb_list": [64] * 4, "kmeans_iters": 3, "target_length": 2.0,
               "recommender": network, "legal_softmax": True, "d_model": 32, "d_ff": 64, "num_heads": 2,
               "max_his_len": 20}  # fmt: skip
    options |= {"encoder_layers": 1, "decoder_layers": 1, "d_kv": 16} if network == "t5" else {}
    cfg = configure.build(options)
    data = read_dataset(cfg[DataOptions])
    build.train_tokenizer(cfg, data)
    torch.manual_seed(3)
    model = build.build_model(cfg, data).model.eval()
    token_NP, real_NP = model.sids.tokens(torch.arange(1, data.n_items + 1))
    history_BS = make_batch(data.test, np.arange(50), 20).history_BS
    for some_BS in history_BS.split(5):
        found = model.recommend(some_BS, data.n_items)
        with torch.inference_mode():
            score = model.recommender.scorer(lambda item: model.sids.tokens(item).token, some_BS)
            own_BN = spell(score, model.trie(), token_NP.expand(5, -1, -1), real_NP.expand(5, -1, -1),
                           legal_softmax=True)  # fmt: skip
        assert (found.item_BW.sort(1).values == torch.arange(1, data.n_items + 1)).all()
        assert torch.allclose(found.score_BW, own_BN.gather(1, found.item_BW - 1), atol=2e-4)
        assert (own_BN.sort(1, descending=True).values - found.score_BW).abs().max() < 2e-4
    ten = model.recommend(history_BS, 10)
    assert all(len(set(row)) == 10 and min(row) > 0 for row in ten.item_BW.tolist())
    for user in range(0, 50, 7):
        assert model.recommend(history_BS[user : user + 1], 10).item_BW[0].tolist() == ten.item_BW[user].tolist()


# ---------------------------------------------------------------- a budget of tokens


def priced(budget):
    """Golden example: items 1-4 cost 2, 3, 2, 3 tokens; history 2, 1, 3, 4, 1 and a target."""
    split = Split(np.array([2, 1, 3, 4, 1, 2]), np.array([0, 6]), np.array([5]))
    return split.priced(np.array([2, 3, 2, 3]), budget)


@pytest.mark.parametrize(
    ("budget", "longest", "want"),
    [(11, 50, [1, 3, 4, 1]), (8, 50, [3, 4, 1]), (12, 50, [2, 1, 3, 4, 1]), (11, 2, [4, 1]), (1, 50, [1])],
)
def test_a_history_is_the_newest_whole_items_that_the_budget_buys(budget, longest, want):
    split = priced(budget)
    assert histories(split, np.array([0]), longest)[0].tolist() == [want]
    assert split.lengths(longest).tolist() == [len(want)]
    assert split.tokens(longest).tolist() == [sum((0, 2, 3, 2, 3)[i] for i in want)]
    assert len(seen_items(split, np.array([0]))[0]) == 5  # what was seen is excluded, whatever is read


@pytest.mark.parametrize("budget", [None, 4, 7, 9, 30])
def test_with_a_budget_too_each_target_of_whole_sequences_is_met_once(place, budget):
    _, data = place
    token_N = np.random.default_rng(0).integers(2, 5, data.n_items)
    split = data.train.priced(token_N, budget)
    for longest in (1, 3, 50):
        kept = sequences(split, longest)
        length = kept.lengths(longest)
        met = [p - i for p, n in zip(kept.position, length, strict=True) for i in range(n)]
        assert sorted(met) == sorted(split.position.tolist())


def test_with_a_budget_rows_of_their_own_are_whole_sequences_too():
    """By hand: a user's twelve items of four tokens, twelve tokens a history; as one sequence and as a row a sample."""
    items = np.arange(1, 13, dtype=np.int32)
    one = Split(items, np.array([0, 12]), np.arange(1, 12))
    rows = [items[:end] for end in range(2, 13)]
    ends = np.cumsum([0, *map(len, rows)])
    for split in (one, Split(np.concatenate(rows), ends, ends[1:] - 1)):
        kept = sequences(split.priced(np.full(12, 4), 12), 50)
        met = [p - i for p, n in zip(kept.position, kept.lengths(50), strict=True) for i in range(n)]
        assert len(kept) == 4 and sorted(kept.items[met]) == list(range(2, 13))


def test_parts_of_a_step_keep_to_the_token_budget(place):
    """Batches are cut by tokens, not by items: no part has more padded tokens than allowed."""
    _, data = place
    model = model_of(place, target_length=1.7, recommender="t5")
    split = within(data.train, None, model.item_tokens)
    shape = Shape(batch_size=64, tokens=200, tokens_per_item=4)
    steps, rows = Steps(split, epoch_plan(split, shape, 0, 0), shape), 0
    for step in range(len(steps)):
        for part in steps[step]:
            token_BS = model.item_tokens[part.history_BS.clamp(min=1).numpy() - 1] * (part.history_BS > 0).numpy()
            assert token_BS.sum(1).max() * len(token_BS) <= 200
            rows += len(token_BS)
    assert rows == len(split)


def test_a_budget_reaches_evaluation_and_python(place):
    _, data = place
    model = model_of(place, target_length=1.7, history_tokens=6)
    split = within(data.test, 6, model.item_tokens)
    assert split.lengths(50).max() < data.test.lengths(50).max()
    history, _ = histories(data.test, np.array([3]), 50)
    assert recent(history[0].tolist(), 50, 6, model.item_tokens) == histories(split, np.array([3]), 50)[0][0].tolist()
    with pytest.raises(Problem, match="history_tokens: is read with semantic IDs only; add --method=two_stage or "):
        configure.build({"method": "sasrec"}, {"history_tokens": 9})


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("legal", [False, True])
def test_scores_that_are_none_are_no_misses(place, network, legal):
    """A NaN in a table makes the evaluation fail whatever is excluded, and not a result of no hits."""
    _, data = place
    model = model_of(place, target_length=1.7, recommender=network, legal_softmax=legal)
    with torch.no_grad():
        model.recommender.tables[0][0] = torch.nan
    batch = make_batch(data.valid, np.arange(6), 50)
    found = model.recommend(batch.history_BS, 10, batch.history_BS)
    assert unsound(found.score_BW, excluded=True).any()
