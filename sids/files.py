"""SIDs in the field's exchange format, {"0": ["<a_12>", "<b_3>", ...], ...}: a list of tokens an item."""

from sids.table import SidTable

END = "z"  # letter of an end token where codes have unlike lengths


def letters(place: int) -> str:
    """Name of a place, from 0: a ... z, aa, ab, ..."""
    before = letters(place // 26 - 1) if place >= 26 else ""
    return before + "abcdefghijklmnopqrstuvwxyz"[place % 26]


def spelled(sids: SidTable) -> dict[str, list[str]]:
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
