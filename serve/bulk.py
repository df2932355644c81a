"""Recommendations for every user of a file in one pass: a batch is ranked and written before the next one is read.

Shape letters: B users of a batch, k list length.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from accelerate.utils import gather_object
from pyarrow import csv, parquet
from tqdm import tqdm

from metrics import EvalOptions
from readers.tables import read_rows
from serve.loaded import Candidates, Loaded
from utils import Problem, log, quoted, whole_file

CHUNK = 16  # batches that are sorted by length together, so that little is padded; what a process ranks at a time
SCHEMA = pa.schema(
    {"user_id": pa.string(), "rank": pa.int32(), "item_id": pa.string(), "title": pa.string(), "score": pa.float32()}
)
Write = Callable[[pa.Table], None]


@dataclass(frozen=True)
class Histories:
    """Item numbers of some users, oldest first, one user after the other."""

    users: list[str]
    item: np.ndarray
    offsets: np.ndarray  # [users + 1]

    def __len__(self) -> int:
        return len(self.users)

    def of(self, user: int) -> list[int]:
        found: list[int] = self.item[self.offsets[user] : self.offsets[user + 1]].tolist()
        return found


def read_histories(path: Path, number: dict[str, int]) -> Histories:
    """The histories of an .inter file, rows in any order, equal times in the order of the file.

    Items that the model does not know are left out, and so are users who have no other; the log says how many.
    """
    rows = read_rows(path)
    known = np.array([number.get(token, 0) for token in rows.items], np.int32)
    item = known[rows.item]
    if lost := int((item == 0).sum()):
        first = next(token for token in rows.items if token not in number)
        log.warning(f"{path}: {lost} of {len(item)} rows have unknown items and are left out, first {quoted(first)}")
    order = np.lexsort((rows.time, rows.user))
    order = order[item[order] > 0]
    user, kept = np.unique(rows.user[order], return_index=True)
    if not len(user):
        raise Problem(f"{path}: holds no item of the model; ids are those of the interaction log")
    if len(user) < len(rows.users):
        log.warning(f"{path}: {len(rows.users) - len(user)} users have no item of the model, they get no list")
    return Histories([rows.users[u] for u in user], item[order], np.append(kept, len(order)))


def check_output(output: Path) -> None:
    """Problem where a file is there already, or its name says no format."""
    if output.exists():
        raise Problem(f"--output: {output} is there already; choose another name")
    if output.suffix.lower() not in WRITERS:
        raise Problem(f"--output: {output}: expected a name that ends in {', '.join(WRITERS)}")


def recommend_all(loaded: Loaded, histories: Histories, output: Path, k: int, offer: Candidates | None = None) -> int:
    """Write the k best items of every user, ranked by all processes; returns the number of rows.

    Parquet and CSV have a row an item (user_id, rank from 1, item_id, title, score), JSON lines an object a user.
    The file appears when it is whole. Problem where one is there already, or its name has none of these endings.
    """
    check_output(output)
    state, done = PartialState(), 0
    chunks, offer = chunks_of(loaded, histories), offer or loaded.offer(None, ())
    mine = _tables(loaded, histories, k, offer, chunks[state.process_index :: state.num_processes])
    with contextlib.ExitStack() as open_files:
        write = open_files.enter_context(writing(output)) if state.is_main_process else None
        silent = None if state.is_main_process else True
        bar = open_files.enter_context(tqdm(total=len(histories), unit=" users", leave=False, disable=silent))
        for first in range(0, len(chunks), state.num_processes):
            tables = gather_object([next(mine, None)])  # in the order of the users
            for table, users in zip(tables, chunks[first:], strict=False):
                done += len(table)
                if write is not None:
                    write(table)
                bar.update(len(users))
    return done


@contextlib.contextmanager
def writing(output: Path) -> Iterator[Write]:
    """What takes the tables of a file, which appears when it is whole."""
    with whole_file(output) as f:
        write, close = WRITERS[output.suffix.lower()](f)
        try:
            yield write
        finally:
            close()  # while the file is open, also where it will be thrown away


def chunks_of(loaded: Loaded, histories: Histories) -> list[np.ndarray]:
    """The users that are ranked at a time, whatever the number of processes."""
    size = loaded.cfg[EvalOptions].eval_batch_size * CHUNK
    return [np.arange(a, min(a + size, len(histories))) for a in range(0, len(histories), size)]


def _tables(
    loaded: Loaded, histories: Histories, k: int, offer: Candidates, chunks: list[np.ndarray]
) -> Iterator[pa.Table]:
    """A table of rows for each chunk of users, in their order."""
    size, k = loaded.cfg[EvalOptions].eval_batch_size, min(k, offer.size)
    names = {"user_id": histories.users, "item_id": loaded.items, "title": loaded.titles}
    text = {name: pa.array(values, pa.string()) for name, values in names.items()}
    length = np.diff(histories.offsets)
    for users in chunks:
        item_Bk, score_Bk = np.zeros((len(users), k), np.int64), np.full((len(users), k), -np.inf, np.float32)
        by_length = np.argsort(-length[users], kind="stable")
        for rows in np.array_split(by_length, -(-len(users) // size)):
            found = loaded.rank([histories.of(u) for u in users[rows]], k, offer)
            width = found.item_BW.shape[1]  # fewer where the search found fewer
            item_Bk[rows, :width], score_Bk[rows, :width] = found.item_BW.cpu().numpy(), found.score_BW.cpu().numpy()
        held = item_Bk > 0
        row, _ = np.nonzero(held)
        columns = [
            text["user_id"].take(pa.array(users[row])), pa.array((held.cumsum(1)[held]).astype(np.int32)),
            text["item_id"].take(pa.array(item_Bk[held] - 1)), text["title"].take(pa.array(item_Bk[held] - 1)),
            pa.array(score_Bk[held]),
        ]  # fmt: skip
        yield pa.table(columns, schema=SCHEMA)


# ---------------------------------------------------------------- formats


def _parquet(f: IO[bytes]) -> tuple[Write, Callable[[], Any]]:
    writer = parquet.ParquetWriter(f, SCHEMA, compression="zstd")
    return writer.write_table, writer.close


def _csv(f: IO[bytes]) -> tuple[Write, Callable[[], Any]]:
    writer = csv.CSVWriter(f, SCHEMA)
    return writer.write_table, writer.close


def _jsonl(f: IO[bytes]) -> tuple[Write, Callable[[], Any]]:
    """{"user_id": ..., "items": [{"item_id": ..., "title": ..., "score": ...}, ...]}"""

    def write(table: pa.Table) -> None:
        line: dict[str, Any] = {}
        for row in table.to_pylist():
            user = row.pop("user_id")
            if row.pop("rank") == 1:
                if line:
                    f.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                line = {"user_id": user, "items": []}
            line["items"].append(row)
        if line:
            f.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    return write, lambda: None


WRITERS = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}
