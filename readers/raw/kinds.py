"""Which module reads which source, and writes it back: a new source is a file and a line here."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from readers.prepare import Prepared
from readers.raw import amazon, diger, letter, movielens, recbole, sequences, table, vk_lsvd, yambda, yelp
from readers.raw.scan import Raw, SourceOptions, files_of, is_split, part_named
from utils import Problem, kind_of, log, quoted, shortened


class Kind(NamedTuple):
    fits: Callable[[Path, list[Path]], bool]
    read: Callable[[Path, SourceOptions], Raw]


KINDS = {  # in the order in which they are looked for
    "diger": Kind(diger.fits, diger.read),
    "letter": Kind(letter.fits, letter.read),
    "p5": Kind(sequences.fits_p5, sequences.read_p5),
    "recbole": Kind(recbole.fits, recbole.read),
    "movielens": Kind(movielens.fits, movielens.read),
    "yelp": Kind(yelp.fits, yelp.read),
    "amazon": Kind(amazon.fits, amazon.read),
    "yambda": Kind(yambda.fits, yambda.read),
    "vk_lsvd": Kind(vk_lsvd.fits, vk_lsvd.read),
    "s3rec": Kind(sequences.fits_s3rec, sequences.read_s3rec),
    "table": Kind(table.fits, table.read),
}

WRITERS: dict[str, Callable[[Prepared, Path, str], None]] = {
    "own": recbole.write_own,
    "table": table.write,
    "recbole": recbole.write,
    "letter": letter.write,
    "diger": diger.write,
}


def find(source: Path, cfg: SourceOptions) -> Raw:
    """The source as the first kind that fits reads it, or as the one that the options name."""
    files = files_of(source)
    if cfg.source == "auto":
        name = next((name for name, kind in KINDS.items() if kind.fits(source, files)), None)
        if name is None:
            beside = next((f", beside {p.name}, {kind}" for p in files if (kind := kind_of(p))), "")
            known = ", ".join(KINDS)
            raise Problem(f"{source}: of no kind that is known{beside}; name it: --source=KIND, one of {known}")
    elif cfg.source in KINDS:
        name = cfg.source
    else:
        raise Problem(f"source: {quoted(cfg.source)} is unknown; expected auto or one of {', '.join(KINDS)}")
    raw = KINDS[name].read(source, cfg)
    read = {*(p.path for p in raw.parts), *raw.text_files, *raw.beside}
    if left := [
        p.relative_to(source)
        for p in sorted(source.rglob("*"))
        if p.is_file() and p not in read and not p.name.endswith(".card.json")
    ]:
        log.info(f"{source}: not read: {shortened(', '.join(map(str, left)))}")
    if is_split(part_named(p.path.relative_to(source)) for p in raw.parts if source.is_dir()):
        names = shortened(", ".join(p.path.name for p in raw.parts))
        log.warning(f"{source}: the parts of a split are read as one log, in the order {names}, and split anew")
    return raw
