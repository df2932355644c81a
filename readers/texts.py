"""The text of each item, that is what its content embedding is made of."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from readers.delimited import text_lines
from readers.files import json_lines
from utils import Problem, digest, is_file, log, quoted, read_json, whole_text


@dataclass(frozen=True)
class Items:
    """The items of a data set: id and text of each."""

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
        texts.append(whole_text(text))
    if missing := [name for name in wanted if name not in known]:
        raise Problem(
            f"{path}: no item has a field {quoted(missing[0])}; there are {', '.join(sorted(known)) or 'none'}"
        )
    if not ids:
        raise Problem(f"{path}: holds no items")
    return Items(ids, _filled(path, ids, texts, say))


def names_in(template: str | None) -> list[str]:
    """The fields that a template names; Problem where it is not one."""
    try:
        fields = [field for field in Formatter().parse(template or "") if field[1] is not None]
    except ValueError as e:
        raise Problem(f"template: {quoted(template)} ({e}); write it as '{{title}}, by {{brand}}'") from None
    names = [str(name) for _, name, _, _ in fields]
    plain = all(re.fullmatch(r"[^\W\d]\w*", str(name)) and not how and not as_what for _, name, how, as_what in fields)
    if template is not None and not (names and plain):
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

    Beside <file>.npy: <file>.json, as scripts/embed_items.py writes it; <file>.ids.json or .ids.txt, the rows' ids. The
    log names what else lies there and is not read. items: the .items.jsonl whose texts are meant; ids: the items in the
    order in which rows are wanted.
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
    known = [embedding.with_suffix(end) for end in (".npy", ".json", ".ids.json", ".ids.txt")]
    for path in (p for p in known[-2:] if is_file(p)):
        rows = read_json(path) if path.suffix == ".json" else [line for _, line in text_lines(path)]
        rows = [str(row).strip() for row in (rows if isinstance(rows, list) else [])]
        told = [*rows, *["none"] * (len(ids) - len(rows))]
        bad = next((row for row, own in enumerate(ids) if told[row] != own), None)
        if bad is not None:
            raise Problem(
                f"{embedding}: row {bad} is {quoted(told[bad])} as {path.name} has it, item {bad} {quoted(ids[bad])}; "
                "bring the rows into the order of the items"
            )
    beside = sorted(embedding.parent.glob(f"{embedding.stem}[._-]*"))
    if others := [p.name for p in beside if p not in known and p.suffix != ".npy"]:
        log.warning(f"{embedding}: {', '.join(others)} beside is not read; the ids of rows would be: {known[-1].name}")
