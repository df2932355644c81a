"""The text of each item, that is what its content embedding is made of."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from readers.files import json_lines
from utils import Problem, digest, is_file, log, quoted, read_json


@dataclass(frozen=True)
class Items:
    """The items of a data set: file, ids and text of each."""

    path: Path
    ids: list[str]
    texts: list[str]


def read_texts(path: Path, fields: Sequence[str], template: str | None, *, say: bool = True) -> Items:
    """The text of each item of a .items.jsonl, from some of its fields; where it is empty, the item's id."""
    wanted = list(fields) or names_in(template)
    ids, texts, known = [], [], set()
    for line, row in json_lines(path):
        if not isinstance(row, dict) or not str(row.get("item_id", "")):
            raise Problem(f"{path}, line {line}: no item_id")
        values = {k: " ".join(str(v).split()) for k, v in row.items() if k != "item_id" and v is not None}
        known |= set(values)
        if template is not None:
            text = template.format_map({name: values.get(name, "") for name in wanted})
        else:
            text = ". ".join(values[k] for k in wanted or values if values.get(k))
        ids.append(str(row["item_id"]))
        texts.append(text)
    if missing := [name for name in wanted if name not in known]:
        raise Problem(
            f"{path}: no item has a field {quoted(missing[0])}; there are {', '.join(sorted(known)) or 'none'}"
        )
    if not ids:
        raise Problem(f"{path}: holds no items")
    return Items(path, ids, _filled(path, ids, texts, say))


def names_in(template: str | None) -> list[str]:
    """The fields that a template names; Problem where it is not one."""
    try:
        names = [name for _, name, how, _ in Formatter().parse(template or "") if name is not None]
    except ValueError as e:
        raise Problem(f"template: {quoted(template)} ({e}); write it as '{{title}}, by {{brand}}'") from None
    if template is not None and (not names or any(not re.fullmatch(r"\w+", n) for n in names)):
        raise Problem(f"template: {quoted(template)} names no plain field; write it as '{{title}}, by {{brand}}'")
    return names


def _filled(path: Path, ids: list[str], texts: list[str], say: bool) -> list[str]:
    if say and (empty := sum(not t.strip() for t in texts)):
        first = ids[next(n for n, t in enumerate(texts) if not t.strip())]
        log.warning(f"{path}: {empty} of {len(texts)} items have no text, first {quoted(first)}; their id is encoded")
    return [t if t.strip() else i for i, t in zip(ids, texts, strict=True)]


def key_of(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def digest_of(texts: Sequence[str]) -> str:
    """A hash of texts in their order."""
    return digest(*(key_of(t).hex() for t in texts))


def check_beside(embedding: Path, items: Path | None, ids: Sequence[str]) -> None:
    """Problem where what lies beside embeddings says that they are of other texts, or of items in another order.

    Beside <file>.npy: <file>.json, as scripts/embed_items.py writes it; <file>.ids.json or .ids.txt, the rows' ids.
    items: the .items.jsonl whose texts are meant; ids: the items in the order in which rows are wanted.
    """
    card = embedding.with_suffix(".json")
    made = read_json(card) if is_file(card) else None
    if items is not None and isinstance(made, dict) and "texts" in made:
        texts = read_texts(items, made.get("fields") or (), made.get("template"), say=False).texts
        if made["texts"] != digest_of(texts):
            raise Problem(
                f"{embedding}: {card.name} says that it was made of other texts than {items.name} holds now, or of "
                "these in another order; embed them again (scripts/embed_items.py), or remove that file if the rows "
                "are those of the items"
            )
    for path in (p for p in map(embedding.with_suffix, (".ids.json", ".ids.txt")) if is_file(p)):
        rows = read_json(path) if path.suffix == ".json" else path.read_text(encoding="utf-8").split("\n")
        for row, (told, own) in enumerate(zip(rows, ids, strict=False)):
            if str(told).strip() != own:
                raise Problem(
                    f"{embedding}: row {row} is {quoted(str(told))} as {path.name} has it, item {row} {quoted(own)}; "
                    "bring the rows into the order of the items"
                )
