"""Tables of rows: their figures against scikit-learn and scipy, what is compared with what, their Markdown."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import ndcg_score

from metrics import per_user
from runs import table
from runs.paired import holm, two_way
from runs.table import Row, against, judged


@pytest.fixture
def ranks():
    draw = np.random.default_rng(0)
    return {name: {seed: draw.integers(0, 30, 500) for seed in (1, 2, 3)} for name in ("ours", "twin")}


def test_figures_by_hand():
    rank = np.array([[0, 1, 9, 9], [0, 9, 9, 2]])
    ours = Row("a", dict(zip((7, 5), rank, strict=True)), [{"coverage@3": 0.5}, {"coverage@3": 0.7}])
    baseline = Row("b", {None: np.array([9, 9, 9, 0])}, [{"coverage@3": 0.1}])
    found = judged({"a": ours, "b": baseline}, {"b": ["a"]}, ["recall@3", "ndcg@3", "coverage@3"])
    per_user = np.array([1, 0.5, 0, 0.5])
    assert found["a"]["recall@3"]["mean"] == per_user.mean() and found["a"]["users"] == 4
    assert found["a"]["recall@3"]["interval"] == pytest.approx(1.96 * per_user.std(ddof=1) / 2)
    assert found["a"]["recall@3"]["seeds"] == [0.5, 0.5]
    less = found["b"]["recall@3"]["against"]["a"]
    difference = np.array([0, 0, 0, 1]) - per_user
    assert less["z_over_users"] == pytest.approx(difference.mean() / (difference.std(ddof=1) / 2))
    assert less["seeds"] == [-0.25, -0.25]  # the same ranks against those of either seed
    relevant = np.eye(10)
    want = [np.mean([ndcg_score(relevant[[r]], [np.arange(10, 0, -1)], k=3) for r in seed]) for seed in rank]
    assert found["a"]["ndcg@3"]["seeds"] == pytest.approx(want)
    assert found["a"]["coverage@3"] == {"mean": pytest.approx(0.6)}


def test_differences_against_scipy(ranks):
    """z and p over users as scipy's paired test has them, the interval that of the matrix of differences."""
    ours = Row("ours", ranks["ours"])
    twin = Row("twin", {s: ranks["twin"][s] for s in (3, 2, 1)})  # in another order
    found = against(ours, twin, "ndcg@10")
    value = {k: {s: per_user("ndcg@10", torch.from_numpy(r)).numpy() for s, r in v.items()} for k, v in ranks.items()}
    mean = {k: np.mean(list(v.values()), 0) for k, v in value.items()}
    assert found["z_over_users"] == pytest.approx(stats.ttest_rel(mean["ours"], mean["twin"]).statistic)
    for seed, p in zip((1, 2, 3), found["p_by_seed"], strict=True):
        assert p == pytest.approx(stats.ttest_rel(value["ours"][seed], value["twin"][seed]).pvalue, rel=0.02)
    want = two_way(np.stack([value["ours"][s] - value["twin"][s] for s in (1, 2, 3)], 1))
    assert (found["difference"], found["interval"], found["p"]) == pytest.approx(want[:3])
    assert found["relative"] == pytest.approx(found["difference"] / mean["twin"].mean())


def test_only_seeds_that_both_have_are_compared(ranks):
    ours, twin = Row("ours", ranks["ours"]), Row("twin", {2: ranks["twin"][2]})
    found = against(ours, twin, "recall@10")
    assert len(found["p_by_seed"]) == 1 and found == against(Row("ours", {2: ranks["ours"][2]}), twin, "recall@10")
    apart = {"a": ours, "b": Row("b", {9: ranks["twin"][1]})}
    assert "against" not in judged(apart, {"a": ["b"]}, ["ndcg@10"])["a"]["ndcg@10"]


def test_all_differences_of_a_table_are_corrected_together(ranks):
    """A row that is not there and a row itself are left out; the correction counts what is left."""
    draw = np.random.default_rng(5)
    rows = {name: Row(name, {s: draw.integers(0, 30, 500) for s in (1, 2)}) for name in "bcd"}
    rows |= {"a": Row("a", {1: np.zeros(500, int), 2: np.zeros(500, int)}), "failed": Row("failed")}
    compared = {"a": ["b"], "b": ["b", "c", "failed", "elsewhere"], "c": ["d"]}
    found = judged(rows, compared, ["ndcg@10"])
    less = {(n, o): x for n, row in found.items() for o, x in row["ndcg@10"].get("against", {}).items()}
    assert less.keys() == {("a", "b"), ("b", "c"), ("c", "d")} and "failed" not in found
    assert [x["p_holm"] for x in less.values()] == holm([x["p"] for x in less.values()])
    assert less["a", "b"]["verdict"] == "above"


@pytest.mark.parametrize(
    ("p", "p_holm", "z", "seeds", "want"),
    [
        (0.001, 0.01, 3, 3, "above"),
        (0.001, 0.01, 3, 1, "above, one seed"),
        (0.001, 0.01, -3, 3, "below"),
        (0.01, 0.06, 3, 3, "above before Holm's correction only"),
        (0.2, 0.4, -3, 3, "below for these users, not over seeds"),
        (0.2, 0.4, 1, 3, "no difference shown"),
    ],
)
def test_verdicts_in_words(p, p_holm, z, seeds, want):
    found = {"difference": 0.01 * z, "p": p, "p_holm": p_holm, "z_over_users": z, "seeds": [0] * seeds}
    assert table.verdict(found) == want


def test_a_row_against_itself_shows_nothing():
    hit = Row("good", {1: np.zeros(100, int)})
    assert against(hit, hit, "recall@10")["p"] == 1.0


def test_markdown_says_every_row_and_difference(ranks):
    rows = {"a": Row("a", ranks["ours"]), "b": Row("b", ranks["twin"])}
    found = judged(rows, {"a": ["b"]}, ["ndcg@10"])
    labels = {"a": "the first", "b": "the second", "lost": "the third"}
    notes = {"a": "5 (3)", "lost": "failed: step 7: not finite"}
    head, rule, *lines = table.figures_table(found, ["ndcg@10"], labels, notes).splitlines()
    assert len({len(line) for line in (head, rule, *lines)}) == 1 and len(lines) == 3  # columns are aligned
    assert [c.strip() for c in lines[2].split("|")[1:-1]] == ["the third", "0", "", "failed: step 7: not finite"]
    (line,) = table.differences_table(found, "ndcg@10", labels).splitlines()[2:]
    less = found["a"]["ndcg@10"]["against"]["b"]
    shown = f"| the first | the second | {less['difference']:+.4f} ± {less['interval']:.4f} |"
    assert " ".join(line.split()).startswith(shown)
    assert less["verdict"] in line
    assert table.differences_table(judged(rows, {}, ["ndcg@10"]), "ndcg@10", labels) == ""
