"""The comparison of lengths and the study of unseen items, from end to end on a toy."""

import numpy as np
import pytest
import yaml
from conftest import tiny_overrides, write_tiny

from scripts import compare, cut_study, holdout_study, length_study
from utils import Problem, read_json

DVAE = {"tokenizer": "dvae", "num_emb_list": [16, 16, 16], "dvae_steps": 12, "rqvae_epochs": 3, "rqvae_batch_size": 32,
        "dvae_width": 16, "dvae_decoder_width": 16, "taught_share": 0.3, "max_shared": 1.0}  # fmt: skip


@pytest.fixture
def shop(tmp_path, monkeypatch):
    write_tiny(tmp_path / "dataset" / "tiny")
    options = tiny_overrides(tmp_path) | {
        "method": "two_stage", "recommender": "rq_transformer", "epochs": 1, "num_beams": 10, **DVAE}  # fmt: skip
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "tiny.yaml").write_text(yaml.safe_dump(options))
    monkeypatch.setattr(compare.main, "CONFIG", tmp_path / "config")
    arms = {name: {k: [16] * len(v) if k == "num_emb_list" else v for k, v in arm.items()}
            for name, arm in length_study.ARMS.items()}  # fmt: skip
    monkeypatch.setattr(length_study, "ARMS", arms)
    return tmp_path


def test_arms_from_end_to_end(shop, monkeypatch):
    """The table's figures, pictures whose curves are the families of arms, and a second call that trains nothing."""
    names = ["fixed2", "fixed3", "cut2", "dvae cut2", "cut2 permuted", "cut2 by count", "rqvae3"]
    argv = [str(shop / "config" / "tiny.yaml"), ",".join(names)]
    result = length_study.study(argv)
    found = result["each"]
    assert {name: len(each) for name, each in found.items()} == dict.fromkeys(names, 1)
    cut, dealt = found["cut2"][0], found["cut2 permuted"][0]
    assert found["cut2 by count"][0]["tokens/event"] <= cut["tokens/event"] and cut["error p"] < dealt["error p"]
    assert len({found[name][0]["tokens/item"] for name in ("cut2", "cut2 permuted", "cut2 by count")}) == 1
    assert found["fixed2"][0]["tokens/event"] == pytest.approx(3)
    assert found["cut2"][0]["tokens/event"] <= 3.05
    assert {found["fixed3"][0][f"codes of tenth {i}"] for i in range(1, 11)} == {3}
    path = next((shop / "out" / "tiny").glob("lengths-*.json"))
    assert read_json(path) == result
    pairs = result["paired"]
    assert list(pairs) == names[1:]
    for name, row in pairs.items():
        for metric in ("recall@10", "ndcg@10"):
            assert row[f"test {metric}"]["difference"] == pytest.approx(
                found[name][0][metric] - found["fixed2"][0][metric]
            )
    drawn = {kind: path.with_name(f"{path.stem}-{kind}.svg").read_text() for kind in ("error", "popularity")}
    assert [drawn["error"].count(f">{name}<") for name in ("fixed", "cut", "dvae cut")] == [1, 1, 1]
    assert drawn["error"].count("<polyline") == 6 and drawn["popularity"].count("<polyline") == 4
    monkeypatch.setattr(compare.main, "train", None)
    again = length_study.study(argv)["each"]
    assert {n: e[0]["ndcg@10"] for n, e in again.items()} == {n: e[0]["ndcg@10"] for n, e in found.items()}


def test_held_out_items_take_no_part_in_the_fit(shop):
    """A tenth of them, with figures of their own; a tokenizer that would see them all the same is refused."""
    argv = [str(shop / "config" / "tiny.yaml"), "--target_length=2.0"]
    found = holdout_study.study(argv)
    items = [row["items"] for row in found.values()]
    assert items[1] == round(0.1 * sum(items)) and all(1 <= row["length"] <= 3 for row in found.values())
    with pytest.raises(Problem, match="needs a tokenizer with weights: counts"):
        holdout_study.study([*argv, "--weights=uniform"])


def test_the_study_of_the_cut_draws_what_it_measured(shop, tmp_path, capsys):
    """A line a run, four pictures; a second call fits nothing, in whatever order the options stand."""
    out = tmp_path / "cut.jsonl"
    argv = [
        "tiny",
        f"--data_path={shop / 'dataset'}",
        "--json",
        str(out),
        "--num_emb_list=16,16,16",
        "--kmeans_iters=3",
    ]
    for words in (argv, [*argv[:4], *argv[:3:-1]]):
        cut_study.run(words)
        assert len(out.read_text().splitlines()) == 2
    names = sorted(p.name for p in tmp_path.glob("cut-*.svg"))
    ends = [f"-tiny-{w}-{n}.svg" for w in ("counts", "uniform") for n in ("error", "popularity")]
    assert len(names) == 4 and all(name.endswith(end) for name, end in zip(names, ends, strict=True))
    error = (tmp_path / names[0]).read_text()
    assert [error.count(f">{name}<") for name in ("fixed", "cut", "permuted", "by count")] == [1, 1, 1, 1]
    assert "| tiny, counts, 1 | cut 2.0 |" in capsys.readouterr().out


def test_rows_of_other_data_are_not_taken_for_these(shop, tmp_path):
    out = tmp_path / "cut.jsonl"
    argv = ["tiny", f"--data_path={shop / 'dataset'}", "--json", str(out), "--num_emb_list=16,16", "--kmeans_iters=3"]
    cut_study.run(argv)
    file = next((shop / "dataset" / "tiny").glob("*.npy"))
    np.save(file, np.load(file)[::-1])
    cut_study.run(argv)
    assert len(out.read_text().splitlines()) == 4
    for text, said in (("no row", "line 1: not readable as JSON"), ("{}\n7", "line 2: not a row of this study")):
        out.write_text(text)
        with pytest.raises(Problem, match=said):
            cut_study.run(argv)


@pytest.mark.parametrize(
    ("study", "words", "said"),
    [
        (cut_study.run, ["--tokenizer=dvae", "--json", "x"], "the study sets it itself"),
        (length_study.study, ["--num_emb_list=16,16"], "what the arms differ in"),
        (length_study.study, ["--method=diger"], "what the arms differ in"),
        (length_study.study, ["--rqvae_path=x.pth"], "what the arms differ in"),
        (
            length_study.study,
            ["--metrics=recall@10,ndcg@10,recall@20", "--num_beams=20"],
            "the table shows coverage@10",
        ),
        (length_study.study, ["--collision=none"], "shares SIDs"),
        (length_study.study, ["--seed=1", "--seeds=2"], "name one of the two"),
    ],
    ids=lambda x: x.__module__ if callable(x) else str(x),
)
def test_what_a_study_cannot_follow_is_said_before_it_begins(shop, study, words, said):
    first = ["tiny"] if study is cut_study.run else [str(shop / "config" / "tiny.yaml"), "fixed2"]
    with pytest.raises(Problem, match=said):
        study([*first, f"--data_path={shop / 'dataset'}", *words])
