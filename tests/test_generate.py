"""Our search against Hugging Face's `generate` with a prefix constraint, on a trained model."""

import numpy as np
import pytest
import torch
from conftest import tiny_overrides, write_tiny

import main
from compose import build, configure, restore
from data import make_batch
from readers.layouts import read_dataset
from readers.splits import DataOptions
from scripts.bench import plain


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    write_tiny(root / "dataset" / "tiny", n_items=60, n_users=120)
    cfg = configure.build(
        tiny_overrides(root)
        | {"method": "two_stage", "run_name": "x", "epochs": 6, "eval_step": 6, "lr_rec": 1e-2, "warmup_steps": 5}
    )
    data = read_dataset(cfg[DataOptions])
    build.train_tokenizer(cfg, data)
    run = main.train(cfg)
    _, model, _ = restore.restore(run.best)
    return cfg, model, data


@pytest.mark.parametrize("beams", [10, 20])
def test_items_and_scores_equal_generates(trained, beams):
    cfg, model, data = trained
    theirs = plain.build(cfg, model.sids.vocabulary).eval()
    plain.copy_weights(model.recommender, theirs)
    tokens = plain.Tokens(model)
    rows = np.arange(len(data.test))
    sequence, score = plain.beams(
        theirs, plain.NestedTrie(tokens.sid_NL[1:]), tokens.batch(data.test, rows, 50), beams, model.tokens_per_item
    )
    item_of = {tuple(sid): item for item, sid in enumerate(tokens.sid_NL.tolist())}
    want = torch.tensor([[item_of[tuple(s)] for s in user] for user in sequence.tolist()])
    found = model.recommend(make_batch(data.test, rows, 50).history_BS, beams)
    assert torch.allclose(found.score_BW, score, atol=1e-4)
    gap = (score[:, :-1] - score[:, 1:]).abs()
    tied = torch.zeros_like(want, dtype=torch.bool)
    tied[:, :-1] |= gap < 1e-4
    tied[:, 1:] |= gap < 1e-4
    tied[:, -1] = True  # its rival may be the first beam that was dropped
    assert (found.item_BW == want)[~tied].all()
    assert (~tied).float().mean() > 0.5
