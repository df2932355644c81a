"""SIDs made elsewhere: an index file in place of a tokenizer.

Nothing can be coded with them: new items need the program that made them, and no content is read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from readers.dataset import Dataset
from settings import option
from sids.files import read_index
from sids.table import SidTable
from sids.tokenizer import CodeOptions
from utils import Contradiction, Problem, log, shortened


@dataclass(frozen=True, kw_only=True)
class GivenOptions(CodeOptions):
    sid_path: str | None = option(None, "<name>.index.json file with the semantic IDs of all items", path=True)
    sid_keys: Literal["auto", "ids", "numbers"] = option(
        "auto", "keys of sid_path: item ids, or item numbers from 0 in catalogue order; auto detects which"
    )
    start_from: str | None = option(
        None,
        "best_model.pth that initialises the recommender; its codes must be named as in sid_path "
        "(scripts/sid_align.py)",
        path=True,
    )
    sid_lengths: Literal["equal", "unlike"] = option(
        "equal", "whether the semantic IDs of sid_path all have the same length (equal) or may differ (unlike)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rqvae_path is not None:
            raise Contradiction("rqvae_path: tokenizer: given has its SIDs from sid_path; drop one of the two",
                                {"rqvae_path": None})  # fmt: skip
        if self.target_length is not None:
            raise Contradiction("target_length: SIDs of sid_path are taken as they are, nothing can be cut; drop it",
                                {"target_length": None})  # fmt: skip

    @property
    def learns_length(self) -> bool:
        return self.sid_lengths == "unlike"

    @property
    def given(self) -> bool:
        return True


class Given:
    """The SIDs of a file, where other runs have a tokenizer."""

    Options: ClassVar[type[GivenOptions]] = GivenOptions

    @staticmethod
    def file(cfg: GivenOptions) -> Path:
        if cfg.sid_path is None:
            raise Problem("sid_path: name the <Name>.index.json with the semantic IDs of all items")
        return Path(cfg.sid_path)

    @classmethod
    def sids(cls, cfg: GivenOptions, data: Dataset) -> SidTable:
        """The SIDs of a data set's items, in their order; Problem where the options say otherwise than the file."""
        path, sizes = cls.file(cfg), cfg.num_emb_list
        found = read_index(path, ids=data.catalogue.ids, keys=cfg.sid_keys, places=len(sizes))
        if not found.even and not cfg.variable_length:
            raise Problem(f"{path}: its SIDs differ in length; set --sid_lengths=unlike and --collision=suffix")
        fewer = len(found.sizes) < len(sizes) and not cfg.variable_length
        if fewer or len(found.sizes) > len(sizes) or any(k > n for k, n in zip(found.sizes, sizes, strict=False)):
            own, wanted = (shortened(",".join(map(str, k))) for k in (sizes, found.sizes))
            raise Problem(f"num_emb_list: levels of {own} codes are not those of {path}; set --num_emb_list={wanted}")
        ends = "none in the file" if found.end_N is None else f"up to {int(found.end_N.max())}"
        log.info(f"semantic IDs: {found.n_items} of {path}, {len(found.sizes)} levels; dedup tokens: {ends}")
        return found
