"""Runs, checkpoints and tokenizers of earlier versions: evaluated to the same ranks, resumed, reused.

The fixture was made at commit 1a7abfe, when a SID was one table with the suffix in its last column and every
option counted: runs of FrqUD, SDUD with FrqUD, two-stage and SASRec on the data of `write_tiny`, 3 epochs each, two
of them stopped in the second epoch as well.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import main
import settings
from compose import build, configure, restore
from compose.retired import upgraded
from data import make_batch
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs.folder import RunFolder
from sids.kept import checkpoint_path
from utils import Problem, read_json

FIXTURE = Path(__file__).parent / "fixtures" / "before_sid_table.tar.gz"


@pytest.fixture
def old(tmp_path):
    """The folder of the old version's data and output."""
    with tarfile.open(FIXTURE) as archive:
        if hasattr(tarfile, "data_filter"):  # Python before 3.11.4 has none
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(tmp_path)
    return tmp_path / "before_sid_table"


def places(old):
    return [f"--data_path={old / 'dataset'}", f"--output_dir={old / 'out'}", f"--log_dir={old / 'logs'}"]


@pytest.mark.parametrize("name", ["frqud", "sdud", "two_stage", "sasrec"])
def test_a_checkpoint_gives_the_ranks_it_gave(old, name):
    """Near ties may fall otherwise on another processor, hence nearly all users."""
    run = old / "out" / "tiny" / name
    cfg, model, _ = restore.restore(run / "best_model.pth", places(old))
    data = read_dataset(cfg[DataOptions])
    user, rank = np.load(run / "ranks-test.npy")
    batch = make_batch(data.test, np.arange(len(data.test)), cfg[DataOptions].max_his_len)
    item = model.recommend(batch.history_BS, 100).item_BW
    hit = item == batch.target_B[:, None]
    now = np.where(hit.any(1), hit.int().argmax(1), 10**6)
    listed = rank < 10
    assert np.array_equal(user, np.arange(len(data.test))) and listed.sum() > 5
    assert (now[listed] == rank[listed]).mean() > 0.9


@pytest.mark.parametrize("name", ["frqud", "sasrec"])
def test_a_stopped_run_goes_on_to_the_same_end(old, name):
    """The old configuration names every option; none that came since is a difference."""
    stopped, whole = (old / "out" / "tiny" / n for n in (f"{name}-stopped", name))
    saved = settings.read_yaml(stopped / "config.yaml")
    own = settings.flat(configure.build({k: v for k, v in saved.items() if k not in ("reference", "resume")}))
    given = [f"--{k}={v}" for k, v in saved.items() if k in own and v is not None and not k.endswith(("_dir", "_path"))]
    given = [w for w in given if not w.startswith(("--resume=", "--data_path="))]
    main.main([*given, *places(old), "--resume=auto"])
    rows = [[json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (stopped, whole)]
    assert [r["epoch"] for r in rows[0]] == [0, 1, 2]
    for now, before in zip(*rows, strict=True):
        assert now["loss"] == pytest.approx(before["loss"], rel=1e-4)
        assert {k.split("/")[0] for k in before} <= {k.split("/")[0] for k in now}
    assert read_json(stopped / "test.json")["ndcg@10"] == pytest.approx(
        read_json(whole / "test.json")["ndcg@10"], abs=0.05
    )


def test_another_option_is_still_a_difference(old):
    run = RunFolder(old / "out" / "tiny" / "frqud-stopped")
    cfg = configure.build({**upgraded_of(run), "lr_id": 0.5, "run_name": "frqud-stopped", "resume": "auto"})
    with pytest.raises(Problem, match=r"begun with other options \(lr_id: 0.001 -> 0.5\)"):
        run.check_free_or_same(cfg)


def upgraded_of(run):
    return upgraded(settings.read_yaml(run.config))


def test_a_tokenizer_is_used_again(old, capsys):
    cfg = configure.build(upgraded_of(RunFolder(old / "out" / "tiny" / "frqud")) | {
        "data_path": str(old / "dataset"), "output_dir": str(old / "out")})  # fmt: skip
    found = build.train_tokenizer(cfg, read_dataset(cfg[DataOptions]))
    assert found == next((old / "out" / "tiny").glob("rqvae-*")) / "best_collision_model.pth"
    for change in ({"e_dim": 4}, {"vq_form": "cumulative"}, {"dead_code_ratio": 0.3}):  # later ones as well
        other = configure.change(cfg, **change)
        assert checkpoint_path(other, "rqvae", read_dataset(cfg[DataOptions])) != found
