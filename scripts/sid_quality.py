"""What can be told of semantic IDs before a recommender is trained on them.

  python scripts/sid_quality.py FILE [--dataset=NAME --data_path=DIR] [--against OLD] [--queries valid] [--json OUT]
                                     [--sizes 256,256,256] [--key=value ...]

FILE is an <name>.index.json, whoever made it, a tokenizer's best_collision_model.pth or a run's best_model.pth, and so
is OLD, an earlier map of the same items. What needs neither interactions nor embeddings is told without a data set.
--queries: histories and targets of the validation (to choose by) or of the test set (to report). --sizes: codes of each
level, where an index does not use the last ones. With two tokenizers --against also gives the paired difference of
their embedding hit rates at 30. Further options are those of the data (--semantic_emb_path=...).
Processes of a launcher share the neighbours out:

  python scripts/launcher.py --config_file accelerate_multi_cpu.yaml scripts/sid_quality.py FILE ...
"""

import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import torch
from accelerate import PartialState

import settings
from compose import parts, restore
from metrics import half_interval, paired_difference
from readers.dataset import Dataset, read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs.exported import read_folder
from sids import distributed, lengths, neighbour_recall, quality
from sids.checkpoint import load_state
from sids.files import read_index
from sids.pairs import PairOptions, pairs_of
from sids.table import SidTable
from sids.tokenizer import CodeOptions
from utils import Problem, as_command, log, log_to, quoted, read_checkpoint, write_json


class Subject(NamedTuple):
    """What is judged: SIDs, the tokenizer behind them where it is known, the data where they are named."""

    sids: SidTable
    tokenizer: Any = None
    data: Dataset | None = None


def subject_of(path: Path, data_words: list[str], sizes: list[int] | None) -> Subject:
    """What a file holds, joined with the data that the words name, or that a run was trained on."""
    if path.suffix.lower() == ".json":
        data = read_data(settings.parse_overrides(data_words)) if data_words else None
        ids = None if data is None else data.catalogue.ids
        return checked(path, Subject(read_index(path, sizes, ids), None, data))
    if sizes is not None:
        raise Problem(f"--sizes: {path} already says how many codes it has; drop the option")
    state = read_folder(path) if path.is_dir() else read_checkpoint(path, allow=(Namespace,))
    if "state_dict" in state:
        return of_tokenizer(path, state, read_data(settings.parse_overrides(data_words)))
    restored = restore.restore(path, data_words)
    if CodeOptions not in restored.cfg:
        raise Problem(f"{path}: recommends by items, it has no semantic IDs")
    data, tokenizer = read_dataset(restored.cfg[DataOptions]), None
    if state["items"] != data.catalogue.ids:
        raise Problem(f"{path}: has other items than {data.name}, or in another order; name the data it was trained on")
    if data.embedding_path is not None:
        width = read_embeddings(data).shape[1]
        tokenizer = restore.carried_tokenizer(path, restored, width, str(data.embedding_path))
    return checked(path, Subject(restored.model.sids, tokenizer, data))  # type: ignore[attr-defined,arg-type]


def of_tokenizer(path: Path, state: dict[str, Any], data: Dataset) -> Subject:
    """The SIDs that a tokenizer's checkpoint gives the items of a data set, without dedup tokens."""
    name, args = state.get("tokenizer", "rqvae"), state.get("args", {})
    parts.check_known("tokenizer", name, parts.TOKENIZERS)
    kind = parts.TOKENIZERS[name]
    values = vars(args) if isinstance(args, Namespace) else args
    options = settings.section(kind.Options, {k: v for k, v in values.items() if k in settings.fields_of(kind.Options)})
    content_ND = read_embeddings(data)
    model = kind(options, content_ND.shape[1])
    load_state(path, model, name)
    return Subject(SidTable(model.eval().encode(content_ND), None, tuple(options.num_emb_list)), model, data)


def read_data(given: dict[str, Any]) -> Dataset:
    if "dataset" not in given:
        raise Problem("--dataset: name the data set whose items these are, and --data_path=DIR where it lies")
    if foreign := [key for key in given if key not in settings.fields_of(DataOptions)]:
        raise settings.unknown(foreign[0], settings.fields_of(DataOptions))
    return read_dataset(settings.section(DataOptions, given))


def checked(path: Path, found: Subject) -> Subject:
    if found.data is not None and found.data.n_items != found.sids.n_items:
        raise Problem(f"{path}: has SIDs of {found.sids.n_items} items, {found.data.name} has {found.data.n_items}")
    return found


def measured(
    found: Subject, queries: str, chosen: tuple[str, ...] = ()
) -> tuple[quality.Figures, dict[str, quality.Figures]]:
    """All figures, and embedding hit rates by representation (of those chosen), as far as what is known goes."""
    sids, tokenizer, data = found
    figures = quality.load_figures(sids)
    if data is None:
        return figures, {}
    train = data.train.alone()
    figures |= quality.purity_figures(sids, pairs_of(train, data.n_items, PairOptions()))
    figures |= quality.cold_figures(sids, data.popularity[1:])
    if not sids.even:
        figures |= lengths.price(sids.length_N.numpy(), data.popularity[1:])
    if data.embedding_path is None:
        return figures, {}
    content_ND = read_embeddings(data)
    asked = neighbour_recall.Queries.of_split(data.split(queries), shape=content_ND.shape)
    views = quality.representations(tokenizer, content_ND, sids)
    return figures, {
        name: neighbour_recall.hit_figures(x_ND, asked) for name, x_ND in views if not chosen or name in chosen
    }


def differences(found: Subject, old: Subject, queries: str) -> quality.Figures:
    """Embedding hit rate at 30 less that of the old SIDs, query by query: mean, half of the 95 % interval, z."""
    if found.tokenizer is None or old.tokenizer is None or found.data is None or found.data.embedding_path is None:
        return {}
    content_ND = read_embeddings(found.data)
    asked = neighbour_recall.Queries.of_split(found.data.split(queries), shape=content_ND.shape)
    ours, theirs = (dict(quality.representations(s.tokenizer, content_ND, s.sids)) for s in (found, old))
    told: quality.Figures = {}
    for name in (n for n in ours if n in theirs and n != "raw"):
        a, b = (torch.from_numpy(neighbour_recall.hits_of_queries(views[name], asked, 30)) for views in (ours, theirs))
        mean, z = paired_difference(a, b)
        told |= {f"{name} hit@30 gain": mean, f"{name} hit@30 +-": half_interval(a - b), f"{name} hit@30 z": z}
    return told


def run(argv: list[str]) -> dict[str, Any]:
    """The command; prints all figures and returns them."""
    given, words = settings.split_off(argv, ["against", "json", "queries", "sizes"])
    files, data_words = [w for w in words if not w.startswith("--")], [w for w in words if w.startswith("--")]
    if len(files) != 1:
        raise Problem("sid_quality: needs one file, as in: myckpt/demo/<run>/demo.index.json --dataset=demo")
    queries = given.get("queries", "valid")
    if queries not in ("valid", "test"):
        raise Problem(f"--queries: expected valid or test, got {quoted(queries)}")
    sizes = settings.coerce(list[int], given["sizes"], "sizes", {"ge": 1}) if "sizes" in given else None
    if "WORLD_SIZE" in os.environ:
        PartialState(cpu=True)  # joins the others
    log_to(None, main=distributed.rank() == 0)
    begin = time.perf_counter()
    found = subject_of(Path(files[0]), data_words, sizes)
    figures, rates = measured(found, queries)
    if "against" in given:
        old = subject_of(Path(given["against"]), data_words, None)
        if old.sids.n_items != found.sids.n_items:
            raise Problem(f"--against: {given['against']} has {old.sids.n_items} items, not {found.sids.n_items}")
        figures |= quality.churn_figures(found.sids, old.sids) | differences(found, old, queries)
    groups = quality.group_sizes(found.sids)
    name = f"{found.data.name}, {queries} queries" if found.data else "no data set"
    log.info(f"{files[0]} ({name}; {time.perf_counter() - begin:.0f} s)\n\n{quality.text(figures, rates)}")
    plain = {"file": files[0], "queries": queries, **figures, "groups": groups, "embedding_hit_rate": rates}
    if "json" in given and distributed.rank() == 0:
        write_json(Path(given["json"]), plain)
    return plain


if __name__ == "__main__":
    as_command(__doc__, run)
    if distributed.processes() > 1:
        PartialState().destroy_process_group()
