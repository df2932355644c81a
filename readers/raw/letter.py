"""LETTER's and LC-Rec's JSON: <Name>.inter.json (user -> item numbers from 0), <Name>.item.json (number -> fields)."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from readers.delimited import text_lines
from readers.prepare import Prepared
from readers.raw.scan import Part, Raw, SourceOptions, Texts, files_of, lists, one, texts_beside
from utils import Problem, quoted, read_json


def fits(source: Path, files: list[Path]) -> bool:
    return any(p.name.endswith(".inter.json") for p in files)


def read(source: Path, cfg: SourceOptions) -> Raw:
    files = files_of(source)
    path = files[0] if source.is_file() else one([p for p in files if p.name.endswith(".inter.json")], "sequences")
    stem = path.name.removesuffix(".inter.json")
    names = {role: path.with_name(f"{stem}.{role}2id") for role in ("user", "item")}
    ids = {role: read_numbers(file) for role, file in names.items()}
    parts, beside = [_part(path, names, ids)], tuple(names.values())
    if (texts := texts_beside(cfg, path.with_name(f"{stem}.item.json"))) is None:
        return Raw("letter", parts, beside=beside)
    return Raw("letter", parts, _texts(texts, ids["item"]), (texts,), beside=beside)


def _part(path: Path, names: dict[str, Path], ids: dict[str, dict[str, str]]) -> Part:
    """The sequences, with ids in place of their numbers where the files beside know them."""
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(row, list) for row in found.values()):
        raise Problem(f"{path}: expected an object of user -> list of items")
    for user, row in found.items():
        if bad := [i for i in row if not isinstance(i, int | str) or isinstance(i, bool)]:
            raise Problem(f"{path}: user {quoted(user)} has the item {quoted(bad[0])}; expected numbers or ids")
    rows = {user: [str(i) for i in row] for user, row in found.items()}
    for role, used in (("user", iter(rows)), ("item", chain.from_iterable(rows.values()))):
        if ids[role] and (lost := next((number for number in used if number not in ids[role]), None)) is not None:
            raise Problem(f"{path}: {role} {quoted(lost)} is not in {names[role]}; add it there")
    users, items = ids["user"], ids["item"]
    return lists(path, [users.get(u, u) for u in rows], [[items.get(i, i) for i in row] for row in rows.values()])


def read_numbers(path: Path) -> dict[str, str]:
    """Number -> id, of a file with `id<TAB>number` a line; {} where there is none."""
    found: dict[str, str] = {}
    for line, text in text_lines(path) if path.is_file() else ():
        token, *number = text.split("\t")
        if text and (len(number) != 1 or not number[0].isdecimal()):
            raise Problem(f"{path}, line {line}: expected an id, a tab and a number, found {quoted(text)}")
        found |= {number[0]: token} if text else {}
    return found


def _texts(path: Path, ids: dict[str, str]) -> Texts:
    def rows(wanted: set[str]) -> Iterator[dict[str, str]]:
        found = read_json(path)
        if not isinstance(found, dict):
            raise Problem(f"{path}: expected an object of item -> text fields")
        for number, fields in found.items():
            token = ids.get(number, number)
            if token in wanted:
                named = fields if isinstance(fields, dict) else {"text": fields}
                yield {"item_id": token, **{k: str(v) for k, v in named.items() if v is not None and k != "item_id"}}

    return rows


def write(data: Prepared, folder: Path, name: str) -> None:
    """The sequences and texts by numbers from 0, and which ids these stand for."""
    rows = {str(user): row for user, row in enumerate(data.sequences())}
    _dump(folder / f"{name}.inter.json", rows)
    texts = {str(i): {k: v for k, v in json.loads(t).items() if k != "item_id"} for i, t in enumerate(data.texts)}
    _dump(folder / f"{name}.item.json", texts)
    for role, ids in (("user", data.users), ("item", data.items)):
        write_numbers(folder / f"{name}.{role}2id", ids, 0)


def _dump(path: Path, value: object) -> None:
    with path.open("w", encoding="utf-8") as f:
        json.dump(value, f)


def write_numbers(path: Path, ids: list[str], first: int) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as f:
        f.writelines(f"{token}\t{number}\n" for number, token in enumerate(ids, first))
