"""Published data sets by name: where their files are, how they are prepared, what should come out.

What has come stays, so that an interrupted download goes on. docs/get-the-data.md says what was checked.
"""

import hashlib
import http.client
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from utils import Problem, log, nearest, quoted, shortened

BLOCK = 1 << 20  # bytes read at a time
AMAZON_2014 = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
AMAZON_2018 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2"
LETTER = "https://raw.githubusercontent.com/HonghuiBao2000/LETTER/ce037d2c2986d144554e04a70ad5c9a1959eb44f/data"


@dataclass(frozen=True)
class Published:
    """A data set. files: addresses; counts: users, items, interactions once prepared; degrees: see `degrees`."""

    files: tuple[str, ...]
    options: tuple[str, ...] = ()  # of scripts/prepare_data.py
    counts: tuple[int, int, int] | None = None
    degrees: str | None = None
    md5: str | None = None  # of a single file, as its publisher gives it


def _amazon_2014(name: str, counts: tuple[int, int, int], degrees: str | None = None) -> Published:
    files = (f"{AMAZON_2014}/reviews_{name}_5.json.gz", f"{AMAZON_2014}/meta_{name}.json.gz")
    return Published(files, counts=counts, degrees=degrees)


def _letter(name: str, counts: tuple[int, int, int], degrees: str | None = None) -> Published:
    files = (f"{LETTER}/{name}/{name}.inter.json", f"{LETTER}/{name}/{name}.item.json")
    return Published(files, counts=counts, degrees=degrees)


PUBLISHED = {
    "beauty": _amazon_2014("Beauty", (22_363, 12_101, 198_502), "9f583ef91ab6cfc4"),
    "sports": _amazon_2014("Sports_and_Outdoors", (35_598, 18_357, 296_337)),
    "toys": _amazon_2014("Toys_and_Games", (19_412, 11_924, 167_597)),
    "instruments": _letter("Instruments", (24_772, 9_922, 206_153)),
    "yelp": _letter("Yelp", (30_431, 20_033, 316_354), "8a37513f40930bb8"),
    "scientific": Published(
        (f"{AMAZON_2018}/categoryFilesSmall/Industrial_and_Scientific_5.json.gz",
         f"{AMAZON_2018}/metaFiles2/meta_Industrial_and_Scientific.json.gz"),
    ),
    "ml-100k": Published(
        ("https://files.grouplens.org/datasets/movielens/ml-100k.zip",), ("--k_core=0",), (943, 1_682, 100_000),
        "30379c2708ab565f", "0e33842e24a9c977be4e0107933c0723",
    ),
}  # fmt: skip


def published(name: str) -> Published:
    if name not in PUBLISHED:
        near = nearest(name, PUBLISHED)
        hint = f"; did you mean {near!r}?" if near else ""
        raise Problem(f"--fetch: {quoted(name)} is not one of {', '.join(PUBLISHED)}{hint}")
    return PUBLISHED[name]


def fetch(name: str, folder: Path) -> Path:
    """Download the files of a data set into a folder, unpack archives, return the folder that holds them.

    A file that is there already is not fetched again: put one there by hand where this machine has no network.
    """
    source = published(name)
    folder.mkdir(parents=True, exist_ok=True)
    for address in source.files:
        path = folder / address.rpartition("/")[2]
        if not path.is_file():
            download(address, path, source.md5)
        log.info(f"{path}: {path.stat().st_size:,} bytes from {address}")
        if path.suffix == ".zip":
            unpack(path, folder / "unpacked")
    return folder / "unpacked" if (folder / "unpacked").is_dir() else folder


def download(address: str, path: Path, md5: str | None = None) -> None:
    """One file; a part that came before is continued where the server can do so and still has the same version."""
    part, version = (path.with_name(f"{path.name}.{end}") for end in ("part", "version"))
    have = part.stat().st_size if part.is_file() and version.is_file() else 0
    headers = {"User-Agent": "diger"} | ({"Range": f"bytes={have}-", "If-Range": version.read_text()} if have else {})
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            continues = answer.status == 206
            version.write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "unknown")
            size = have * continues + int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if continues else "wb") as file:
                copy(answer, file, size, path.name)
    except (OSError, ValueError, http.client.HTTPException) as e:
        if isinstance(e, urllib.error.HTTPError) and e.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            part.unlink()  # nothing is missing, or it is another file's: only the whole tells
            download(address, path, md5)
            return
        said = f"status {e.code}" if isinstance(e, urllib.error.HTTPError) else " ".join(str(e).split())
        reason = shortened(said, 120)
        raise Problem(
            f"{address}: could not be fetched ({reason or type(e).__name__}); the same command continues where it "
            f"stopped, or fetch that file elsewhere and put it here as {path}"
        ) from None
    if size and part.stat().st_size != size:
        came = f"{part.stat().st_size:,} of {size:,} bytes"
        raise Problem(f"{address}: ended after {came}; the same command continues there")
    if md5 is not None and hashlib.md5(part.read_bytes(), usedforsecurity=False).hexdigest() != md5:
        part.unlink()
        version.unlink()
        raise Problem(f"{address}: not the published file (its MD5 is not {md5}); it was removed, try again later")
    part.rename(path)
    version.unlink()


def copy(answer: IO[bytes], file: IO[bytes], size: int, name: str) -> None:
    with tqdm(total=size or None, initial=file.tell(), unit="B", unit_scale=True, desc=name, mininterval=1) as bar:
        while block := answer.read(BLOCK):
            file.write(block)
            bar.update(len(block))


def unpack(path: Path, out: Path) -> None:
    """The plain files of an archive, without its folders."""
    out.mkdir(exist_ok=True)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    (out / Path(member.filename).name).write_bytes(archive.read(member))
    except zipfile.BadZipFile as e:
        raise Problem(f"{path}: not a whole archive ({e}); remove it and fetch it again") from None


def degrees(user: np.ndarray, item: np.ndarray) -> str:
    """A hash of the interactions that depends neither on their order nor on names: of the sorted pairs (interactions of
    the user, interactions of the item), a pair an interaction.
    """
    uses, length = (np.bincount(codes)[codes].astype("<i8") for codes in (item, user))
    return hashlib.sha256(np.sort(length * 2**32 + uses).tobytes()).hexdigest()[:16]


def compare(name: str, counts: tuple[int, int, int], found: str) -> None:
    """Log whether a prepared data set is the one that was expected."""
    source = published(name)
    wanted = ("counts", source.counts) if source.degrees is None else ("counts, hash", (source.counts, source.degrees))
    there = counts if source.degrees is None else (counts, found)
    if source.counts is None:
        log.info(f"{name}: nothing is known that its counts could be compared with")
    elif there == wanted[1]:
        log.info(f"{name}: as expected, {wanted[0]}")
    else:
        log.warning(
            f"{name}: expected of {wanted[0]} {wanted[1]}, found {there}; the published files have changed, or were "
            "prepared with other options"
        )
