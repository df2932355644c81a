"""How well items that a model has never seen are found: train without the newest ones, add them, ask for them.

  python scripts/cold_items.py --config config/scientific.yaml --data_path=DIR --method=two_stage [--share 0.02]
                               [--key=value ...]

The newest items are those that stand latest in their users' sequences, on average (where times are only an order,
nothing better is known). Interactions with them are taken out, tokenizer and recommender are trained on the rest, and
the new items get their semantic IDs by scripts/add_items.py. Asked is for every interaction with a new item, from the
old items before it. Everything goes to <output_dir>/<data set>-old-<digest of the data and the new items>/.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import numpy as np
import torch

import main
import settings
from compose import build, cli, configure, parts
from data import recent
from metrics import EvalOptions, per_user, target_rank
from model import GenerativeModel
from readers.dataset import Catalogue, Dataset, read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from recommenders.baselines import Content
from recommenders.protocol import Ranker
from runs.folder import RunOptions
from scripts.add_items import extended
from serve.loaded import Loaded, left_padded, load
from settings import Config
from sids.search import Trie, sid_key
from sids.table import SidOptions
from sids.tokenizer import CodeOptions
from utils import (
    Problem,
    digest,
    keep_freed_memory,
    log,
    log_to,
    make_folder,
    problems_exit_2,
    quoted,
    write_checkpoint,
    write_json,
    write_text,
)

K = 10


class Asked(NamedTuple):
    """Histories of old items, and the new item that came next."""

    histories: list[list[str]]
    targets: list[str]


def newest(data: Dataset, share: float) -> list[int]:
    """Numbers of the share of the items that stand latest in their users' sequences on average, ascending."""
    s = data.test  # all parts share one array; a user's last row is the test item
    length = np.diff(s.offsets)
    place = np.arange(len(s.items)) - np.repeat(s.offsets[:-1], length)
    relative = place / np.maximum(np.repeat(length, length) - 1, 1)
    count = np.bincount(s.items, minlength=data.n_items + 1)
    mean = np.bincount(s.items, relative, data.n_items + 1) / np.maximum(count, 1)
    order = np.argsort(-mean[1:], kind="stable") + 1
    order = order[count[order] > 0]
    return sorted(order[: max(1, round(share * data.n_items))].tolist())


def write_old(data: Dataset, new: set[int], folder: Path) -> None:
    """The data set without some items, in one layout that every command reads."""
    make_folder(folder)
    s, name = data.test, folder.name
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, (begin, end) in enumerate(zip(s.offsets[:-1], s.offsets[1:], strict=True)):
        kept = [i for i in s.items[begin:end].tolist() if i not in new]
        rows += [f"{user}\t{data.catalogue.ids[i - 1]}\t{time}" for time, i in enumerate(kept)]
    write_text(folder / f"{name}.inter", "\n".join(rows) + "\n")
    old = [i for i in range(1, data.n_items + 1) if i not in new]
    lines = [json.dumps({"item_id": data.catalogue.ids[i - 1], "title": data.catalogue.titles[i - 1]}) for i in old]
    write_text(folder / f"{name}.items.jsonl", "\n".join(lines) + "\n")
    np.save(folder / f"{name}.emb-old.npy", np.asarray(read_embeddings(data))[np.array(old) - 1])


def questions(data: Dataset, new: set[int]) -> Asked:
    """Every interaction with a new item that has old ones before it."""
    s, ids, asked = data.test, data.catalogue.ids, Asked([], [])
    for begin, end in zip(s.offsets[:-1], s.offsets[1:], strict=True):
        history: list[str] = []
        for item in s.items[begin:end].tolist():
            if item not in new:
                history.append(ids[item - 1])
            elif history:
                asked.histories.append(list(history))
                asked.targets.append(ids[item - 1])
    return asked


def kinds(model: GenerativeModel, n_new: int) -> np.ndarray:
    """Of each new item, how much of its SID was trained: a code that no old item has (0), an unseen prefix of codes
    that occur (1), all codes as an old item has them (2).
    """
    code_NT = model.code_NT.long()
    old, new = code_NT[:-n_new], code_NT[-n_new:]
    seen = torch.stack([torch.isin(new[:, t], old[:, t]) for t in range(old.shape[1])], 1).all(1)
    vocabulary = list(model.sizes)
    whole = Trie(old, vocabulary, shared=True).find(sid_key(new, vocabulary)) >= 0
    return torch.where(whole, 2, seen.long()).numpy()


@torch.inference_mode()
def ranks(ranker: Ranker, loaded: Loaded, asked: Asked, among: list[int] | None) -> Any:
    """Rank of every target, K where the list of K lacks it; histories as the model reads them."""
    d, e, found = loaded.cfg[DataOptions], loaded.cfg[EvalOptions], []
    candidates_M = None if among is None else torch.tensor(among)
    for begin in range(0, len(asked.targets), e.eval_batch_size):
        rows = [[loaded.number[t] for t in h] for h in asked.histories[begin : begin + e.eval_batch_size]]
        target = torch.tensor([loaded.number[t] for t in asked.targets[begin : begin + e.eval_batch_size]])
        read = left_padded([recent(row, d.max_his_len, d.history_tokens, loaded.model.item_tokens) for row in rows])
        item_BW = ranker.recommend(read, K, left_padded(rows) if e.mask_seen else None, candidates_M).item_BW
        found.append(target_rank(item_BW, target).clamp(max=K))
    return torch.cat(found)


def measure(path: Path, new: Catalogue, asked: Asked, content_ND: np.ndarray) -> dict[str, Any]:
    """Recall and NDCG of the new items with the whole trie and with the new items alone, split by kind of SID; content
    neighbours beside it. content_ND: embeddings in the order of the extended catalogue.
    """
    loaded = load(path)
    model = loaded.model
    assert isinstance(model, GenerativeModel)
    n, first = len(new), len(loaded.items) - len(new)
    kind = kinds(model, n)
    target_kind = kind[[loaded.number[t] - first - 1 for t in asked.targets]]
    names = ("a code no old item has", "known codes, unseen prefix", "codes of an old item")
    found: dict[str, Any] = {"new items": n, "questions": len(asked.targets)}
    found |= {f"items: {name}": int((kind == i).sum()) for i, name in enumerate(names)}
    alone = list(range(first + 1, first + n + 1))
    baseline = Content(content_ND)
    ways: list[tuple[str, Ranker, list[int] | None]] = [
        ("whole trie", model, None), ("new items alone", model, alone),
        ("content, whole catalogue", baseline, None), ("content, new items alone", baseline, alone),
    ]  # fmt: skip
    for where, ranker, among in ways:
        rank = ranks(ranker, loaded, asked, among)
        of_kind = {"all": np.ones(len(rank), bool), **{name: target_kind == i for i, name in enumerate(names)}}
        for name, held in of_kind.items():
            if held.any():
                some = rank[torch.from_numpy(held)]
                values = {m: float(per_user(m, some).mean()) for m in (f"recall@{K}", f"ndcg@{K}")}
                found[f"{where}, {name}"] = {"questions": int(held.sum()), **values}
    found["chance, new items alone"] = min(1.0, K / n)
    return found


def check_able(cfg: Config) -> Config:
    """The same; Problem, before anything is trained, where the model could take no new items or would know them."""
    if not build.reads_content(cfg):
        raise Problem("method: has no tokenizer, so it cannot take new items; use --method=two_stage")
    if cfg[CodeOptions].variable_length or cfg[SidOptions].shared:
        raise Problem("target_length, collision: new items are known with SIDs of one length, suffix and item only")
    for key in ("rqvae_path", "start_from"):
        if settings.flat(cfg).get(key) is not None:
            raise Problem(f"{key}: what was trained with the new items may know them; leave it out")
    if cfg[DataOptions].split != "leave_one_out":
        raise Problem(f"split: {cfg[DataOptions].split} is not known here; use leave_one_out")
    return cfg


def run(argv: list[str]) -> dict[str, Any]:
    """Train without the newest items, add them, measure; returns and saves the figures."""
    given, words = settings.split_off(argv, ["share"])
    share = given.get("share", "0.02")
    if not share.replace(".", "", 1).isdecimal() or not 0 < float(share) <= 0.5:
        raise Problem(f"--share: expected a number above 0, at most 0.5, got {quoted(share)}")
    cfg = cli.configuration(words, __doc__, lambda cfg: main.check_data(check_able(cfg)))
    check_able(cfg)
    log_to(None, main=True)
    data = read_dataset(cfg[DataOptions])
    fresh = newest(data, float(share))
    new = Catalogue([data.catalogue.ids[i - 1] for i in fresh], [data.catalogue.titles[i - 1] for i in fresh])
    name = f"{data.name}-old-{digest(data.hash, fresh)}"  # other new items, another model
    place = Path(cfg[RunOptions].output_dir) / name
    write_old(data, set(fresh), place / "data" / name)
    method = parts.folder_name(cfg)
    old = configure.change(
        cfg, dataset=name, data_path=str(place / "data"), data_format="auto", semantic_emb_path=None,
        short_users="drop", run_name=f"cold-{method}", resume="auto",
    )  # fmt: skip
    build.train_tokenizer(old, read_dataset(old[DataOptions]))
    trained = main.train(old, main.SAME_AGAIN)
    log_to(None, main=True)
    content_ND, rows = np.asarray(read_embeddings(data)), np.array(fresh) - 1
    path = trained.path / "extended.pth"
    write_checkpoint(path, extended(trained.best, new, content_ND[rows]))
    ordered = np.concatenate([np.delete(content_ND, rows, 0), content_ND[rows]])
    figures = measure(path, new, questions(data, set(fresh)), ordered)
    for key, value in figures.items():
        log.info(f"{key}: {value}")
    write_json(trained.path / "cold.json", figures)
    log.info(f"as JSON: {trained.path / 'cold.json'}")
    return figures


if __name__ == "__main__":
    keep_freed_memory()
    with problems_exit_2():
        run(sys.argv[1:])
