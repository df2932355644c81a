"""The released layout of DIGER: <name>.{train,valid,test}.jsonl, a row a sample, and <name>.emb_map.json."""

import json
from pathlib import Path

from readers.dataset import SPLITS
from readers.jsonl import samples
from readers.prepare import Prepared
from readers.raw.scan import Raw, SourceOptions, files_of, lists, one
from utils import Problem, log, quoted, write_json

LONGEST = 50  # items of a written history, as released


def fits(source: Path, files: list[Path]) -> bool:
    return any(p.name.endswith(".test.jsonl") for p in files)


def read(source: Path, cfg: SourceOptions) -> Raw:
    """The sequences behind the samples: whole where rows name their user, else as long as the test histories."""
    test = source if source.is_file() else one([p for p in files_of(source) if p.name.endswith(".test.jsonl")], "tests")
    stem = test.name.removesuffix(".test.jsonl")
    users: dict[str, list[str]] = {}
    longest = 0
    for split in SPLITS:
        path = test.with_name(f"{stem}.{split}.jsonl")
        for line, history, target, user in samples(path):
            if user is None:
                if split == "test":
                    users[f"u{len(users)}"] = [*history, target]
                    longest = max(longest, len(history))
            else:
                users.setdefault(user, list(history)).append(target)
                if split == "test" and users[user][-len(history) - 1 : -1] != history:
                    raise Problem(f"{path}, line {line}: the history of {quoted(user)} is not that of its earlier rows")
    if longest >= LONGEST:
        log.warning(f"{test}: no user_id, and histories end at {longest} items: what lies before them is not here")
    beside = tuple(test.with_name(f"{stem}.{split}.jsonl") for split in SPLITS)
    return Raw("diger", [lists(test, list(users), list(users.values()))], beside=beside)


def write(data: Prepared, folder: Path, name: str) -> None:
    """Leave-one-out samples with their last 50 items, users of fewer than three left out; texts have no place here."""
    if "[PAD]" in data.items:
        raise Problem("an item is called [PAD], which the layout diger keeps for padding; rename it")
    files = {s: (folder / f"{name}.{s}.jsonl").open("w", encoding="utf-8") for s in SPLITS}
    try:
        for user, row in zip(data.users, data.sequences(), strict=True):
            tokens = [data.items[i] for i in row]
            for end in range(1, len(tokens)) if len(tokens) >= len(SPLITS) else ():
                split = SPLITS[max(0, end + 3 - len(tokens))]
                history = tokens[max(0, end - LONGEST) : end]
                sample = {"user_id": user, "target_id": tokens[end], "inter_history": history}
                files[split].write(json.dumps(sample) + "\n")
    finally:
        for f in files.values():
            f.close()
    write_json(folder / f"{name}.emb_map.json", {"[PAD]": 0, **{t: i for i, t in enumerate(data.items, 1)}})
