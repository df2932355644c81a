"""Matching SIDs over time: against all permutations, on renamed tables, and what cannot be matched."""

import itertools
import json

import pytest
import torch

from scripts import sid_align
from sids.align import align, best_names
from sids.files import read_index, to_index
from sids.table import SidTable, ended
from utils import Problem


def table(code_NT, size, end_N=None):
    end_N = ended(code_NT, "suffix", len(code_NT)) if end_N is None else end_N
    return SidTable(code_NT, end_N, (size,) * code_NT.shape[1], len(code_NT))


def random_codes(n, size, seed):
    return torch.randint(0, size, (n, 3), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
def test_names_are_the_best_of_all_permutations(seed):
    was, now = random_codes(60, 4, seed)[:, 0], random_codes(60, 4, seed + 100)[:, 0]
    same = random_codes(60, 2, seed + 200)[:, 0].bool()

    def worth(names):
        hit = torch.tensor(names)[now] == was
        return int((hit & same).sum()), int(hit.sum())

    found = best_names(was, now, same, 4)
    assert sorted(found.tolist()) == [0, 1, 2, 3]
    assert worth(found.tolist()) == max(map(worth, itertools.permutations(range(4))))


def test_renamed_codes_are_found_again_end_tokens_too():
    """Names are shuffled level by level, dedup tokens counted anew in another order."""
    code = random_codes(300, 6, 0)
    old = table(code, 6)
    shuffled = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(t))[c]
                            for t, c in enumerate(code.unbind(1))], 1)  # fmt: skip
    turned = ended(shuffled.flip(0), "suffix", 300).flip(0)
    found = align(old, table(shuffled, 6, turned))
    assert found.agree == [1, 1, 1] and found.kept == 1 and found.agree_before[2] < 0.2
    assert torch.equal(found.sids.token_NP, old.token_NP)


def test_items_that_moved_and_items_that_are_new():
    """Nobody shares a SID, who keeps the codes keeps the dedup token, groups are those of the new table."""
    code = random_codes(200, 5, 1)
    moved = code.clone()
    moved[:40] = random_codes(40, 5, 2)
    more = torch.cat([moved, random_codes(30, 5, 3)])
    old, new = table(code, 5), table(more, 5)
    found = align(old, new)
    assert len(found.sids.token_NP.unique(dim=0)) == 230 and found.sids.fault() is None
    same = (found.sids.code_NT[:200] == code).all(1)
    assert found.agree[2] == pytest.approx(float(same.double().mean())) and same[40:].all()
    assert torch.equal(found.sids.end_N[:200][same], old.end_N[same]) and found.kept == found.agree[2]
    groups = [s.code_NT.unique(dim=0, return_inverse=True)[1] for s in (new, found.sids)]
    assert len(torch.stack(groups).unique(dim=1).T) == len(groups[0].unique())


def test_more_codes_than_before():
    """Old names go to the best, the others have new ones."""
    code = random_codes(300, 4, 1)
    finer = torch.stack([c * 2 + (torch.arange(300) % 2 if t == 2 else 0) for t, c in enumerate(code.unbind(1))], 1)
    found = align(table(code, 4), table(finer, 8))
    assert found.agree[:2] == [1, 1] and 0.3 < found.agree[2] < 0.7 and found.sids.sizes == (8, 8, 8)


def test_files_in_and_out(tmp_path):
    code = random_codes(80, 5, 4)
    (tmp_path / "old.index.json").write_text(json.dumps(to_index(table(code, 5))))
    (tmp_path / "new.index.json").write_text(json.dumps(to_index(table((code + 1) % 5, 5))))
    words = [str(tmp_path / "old.index.json"), str(tmp_path / "new.index.json")]
    found = sid_align.run([*words, f"--output={tmp_path / 'x.index.json'}"])
    assert found.kept == 1
    written, old = read_index(tmp_path / "x.index.json"), read_index(tmp_path / "old.index.json")
    assert torch.equal(written.token_NP, old.token_NP)
    names = json.loads((tmp_path / "x.codes.json").read_text())
    assert names["level_1"] == [4, 0, 1, 2, 3]
    with pytest.raises(Problem, match="is there already"):
        sid_align.run([*words, f"--output={tmp_path / 'x.index.json'}"])


@pytest.mark.parametrize(
    ("n", "places", "message"),
    [(40, 3, "the new SIDs have 40 items, the old ones 50; items may be added"),
     (50, 2, "have 2 levels, the old ones 3")],
)  # fmt: skip
def test_what_cannot_be_matched_is_one_line(n, places, message):
    with pytest.raises(Problem, match=message):
        align(table(random_codes(50, 4, 0), 4), table(random_codes(n, 4, 0)[:, :places], 4))


@pytest.mark.parametrize("words", [[], ["a"], ["a", "b", "c"], ["a", "--x=1"], ["a", "b"]])
def test_a_wrong_command_is_one_line(words):
    with pytest.raises(Problem):
        sid_align.run(words)
