"""SIDs in the field's exchange format, {"0": ["<a_12>", "<b_3>", ...], ...}: a list of tokens an item."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sids.table import SidTable, groups_of
from utils import Problem, log, quoted, read_json, shortened

END = "z"  # letter of a dedup token where codes have unlike lengths


def letters(place: int) -> str:
    """Name of a place, from 0: a ... z, aa, ab, ..."""
    before = letters(place // 26 - 1) if place >= 26 else ""
    return before + "abcdefghijklmnopqrstuvwxyz"[place % 26]


def to_index(sids: SidTable) -> dict[str, list[str]]:
    """Item index from 0 -> its tokens. Of unlike lengths, shorter codes are shorter lists and end with <z_...>."""
    names = [letters(place) for place in range(len(sids.vocabulary))]
    if sids.even or sids.end_N is None:
        rows = [[f"<{name}_{token}>" for name, token in zip(names, row, strict=True)] for row in sids.token_NP.tolist()]
    else:
        lengths, ends = sids.length_N.tolist(), sids.end_N.tolist()
        rows = [
            [*(f"<{name}_{code}>" for name, code in zip(names, row[:n], strict=False)), f"<{END}_{end}>"]
            for row, n, end in zip(sids.code_NT.tolist(), lengths, ends, strict=True)
        ]
    return {str(i): row for i, row in enumerate(rows)}


# ---------------------------------------------------------------- back again

TOKEN = re.compile(r"<([a-z]+)_(\d{1,9})>")


def read_index(
    path: Path,
    sizes: Sequence[int] | None = None,
    ids: Sequence[str] | None = None,
    keys: str = "auto",
    places: int | None = None,
) -> SidTable:
    """The SIDs of an index file, whoever made it; Problem names the item that does not fit.

    A last token is a dedup token where it numbers the items of equal codes 0, 1, 2 ..., in any order, where it is the
    item's own number or 0 for one that stands alone, or where it is the <z_...> of lists of unlike length.
    sizes: codes of each level; default: the largest that occurs, and one. places: code places of a SID, where they are
    known (sizes tell them too): then one token more that tells all items apart is a dedup token, whatever it counts.
    ids: those of a catalogue, whose order the table then has; the file's keys may be such ids (`keys`: ids) or numbers
    from 0 (numbers; without ids they must be).
    """
    raw = _entries(path)
    names = _names(path, raw, ids, keys)
    places = places if sizes is None else len(sizes)
    rows = [_tokens(path, name, tokens) for name, tokens in raw.items()]
    length_N = torch.tensor([len(row) for row in rows])
    longest = int(length_N.max())
    token_NP = torch.tensor([[number for _, number in row] + [-1] * (longest - len(row)) for row in rows])
    last_N = token_NP.gather(1, length_N[:, None] - 1)[:, 0]
    even = bool((length_N == longest).all())
    place = {name: row for row, name in enumerate(raw)}
    own_N = torch.tensor([place[name] for name in names])
    if not even and all(row[-1][0] == END for row in rows):
        code_NT, end_N = token_NP.scatter(1, length_N[:, None] - 1, -1)[:, : longest - 1], last_N
    elif (
        even
        and longest > 1
        and (
            _numbers(last_N, token_NP[:, :-1], own_N)
            or (longest - 1 == places and int(groups_of(token_NP).max()) + 1 == len(token_NP))
        )
    ):
        code_NT, end_N = token_NP[:, :-1], last_N
    else:
        code_NT, end_N = token_NP, None
    levels = _sizes(path, code_NT, sizes)
    if end_N is None:
        return SidTable(code_NT[own_N], None, levels)
    return SidTable(code_NT[own_N], end_N[own_N], levels, int(end_N.max()) + 1)


def _numbers(end_N: Tensor, code_NT: Tensor, own_N: Tensor) -> bool:
    """Are the items of each code numbered 0, 1, 2 ..., each number once, or each by its own number?

    own_N: rows in the order of the items.
    """
    group_N = groups_of(code_NT)
    size_G = group_N.bincount()
    number_N = torch.zeros_like(end_N).index_put((own_N,), torch.arange(1, len(own_N) + 1))
    if torch.equal(torch.where(size_G[group_N] > 1, number_N, 0), end_N):
        return True
    largest_G = torch.zeros_like(size_G).scatter_reduce(0, group_N, end_N, "amax")
    return torch.equal(largest_G, size_G - 1) and len(torch.stack([group_N, end_N]).unique(dim=1).T) == len(end_N)


def _entries(path: Path) -> dict[str, Any]:
    raw = read_json(path)
    if not isinstance(raw, dict) or not raw:
        raise Problem(f'{path}: expected {{"0": ["<a_12>", ...], ...}}, an item and its tokens')
    return raw


def _names(path: Path, raw: dict[str, Any], ids: Sequence[str] | None, keys: str) -> list[str]:
    """The keys of the items in catalogue order: numbers from 0, or their ids."""
    numbers = [str(item) for item in range(len(raw) if ids is None else len(ids))]
    counted = len(numbers) == len(raw) and all(name in raw for name in numbers)
    if ids is None:
        if not counted:
            item = next(name for name in numbers if name not in raw)
            raise Problem(f"{path}: item {item} of {len(raw)} has no list of tokens; keys count from 0")
        return numbers
    lacking = [item for item in ids if item not in raw]
    if keys == "auto" and counted and not lacking and list(ids) != numbers:
        raise Problem(
            f"{path}: its keys may be item ids or the items' numbers from 0, and that makes a difference here; "
            "say which: --sid_keys=ids or numbers"
        )
    if keys == "numbers" or (keys == "auto" and counted):
        if not counted:
            raise Problem(f"{path}: its keys are not the numbers 0 ... {len(ids) - 1} of the {len(ids)} items")
        return numbers
    if lacking:
        raise Problem(
            f"{path}: has no SID for item {quoted(lacking[0])}, {len(lacking)} of the {len(ids)} are missing; its "
            f"{len(raw)} keys have to be all item ids, or the numbers from 0 of the items in catalogue order"
        )
    if (more := len(raw) - len(ids)) > 0:
        known = set(ids)
        first = next(name for name in raw if name not in known)
        log.warning(f"{path}: SIDs of {more} items that the data set does not have are left out, first {quoted(first)}")
    return list(ids)


def _tokens(path: Path, item: str, tokens: Any) -> list[tuple[str, int]]:
    """(letter, number) of each token of an item."""
    if not isinstance(tokens, list) or not tokens:
        raise Problem(f"{path}: item {shortened(item)} has no list of tokens like <a_12>")
    found = [TOKEN.fullmatch(t) if isinstance(t, str) else None for t in tokens]
    if None in found:
        wrong = tokens[found.index(None)]
        raise Problem(f"{path}: item {shortened(item)}: {quoted(wrong)} is no token like <a_12>")
    row = [(m[1], int(m[2])) for m in found if m]
    for place, (letter, _) in enumerate(row):
        if letter != letters(place) and (letter != END or place != len(tokens) - 1):
            wanted = f"token {place + 1} is <{letter}_...>, expected <{letters(place)}_...>"
            raise Problem(f"{path}: item {shortened(item)}: {wanted}")
    return row


def _sizes(path: Path, code_NT: Tensor, sizes: Sequence[int] | None) -> tuple[int, ...]:
    largest = [int(code_N.max()) for code_N in code_NT.unbind(1)]
    if sizes is None:
        return tuple(code + 1 for code in largest)
    if len(sizes) != len(largest) or any(code >= k for code, k in zip(largest, sizes, strict=True)):
        told = shortened(", ".join(map(str, sizes)))
        raise Problem(
            f"{path}: largest codes {', '.join(map(str, largest))} do not fit into levels of {told} codes; raise "
            "num_emb_list"
        )
    return tuple(sizes)
