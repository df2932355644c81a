"""What a tokenizer is: content embeddings to codes and back, fitted once or learned.

Shape letters: N items of the catalogue, U distinct items of a batch, D embedding width, T code positions,
K codes of a position, h recommender width.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from layers import straight_through_lookup
from readers.dataset import Dataset, read_embeddings
from readers.splits import Split
from readers.stamps import place_of
from settings import option
from utils import Contradiction, Problem

ROWS = 8192  # rows of a catalogue that go through a network at a time
HELD = 1 << 30  # bytes of a catalogue's embeddings, or latents, as float32, up to which training holds them in memory
Distances = Callable[[Tensor, Tensor], Tensor]  # rows [n], codes before a level [n, l] -> squared distances [n, K]


UNEVEN = ("target_length=2.0", "length: learned", "sid_lengths: unlike")


@dataclass(frozen=True, kw_only=True)
class CodeOptions:
    """What every tokenizer is asked: how many codes, from which embeddings, made already or not."""

    num_emb_list: list[int] = option([256, 256, 256], "number of codes per level, one number for each level", ge=2)
    rqvae_path: str | None = option(
        None, "checkpoint of a pre-trained tokenizer to use, such as a released best_collision_model.pth", path=True
    )
    target_length: float | None = option(
        None,
        "average number of codes per item, weighted by interactions (variable-length SIDs, two_stage only); null = "
        "all levels",
        ge=1,
    )
    max_group: int = option(
        64,
        "maximum number of items that share a variable-length code; the rarest get one code more",
        ge=1, needs=UNEVEN,
    )
    max_shared: float = option(
        0.75,
        "maximum collision rate of variable-length SIDs (1 - distinct codes / items), above which is an error",
        ge=0, le=1, needs=UNEVEN,
    )

    @property
    def learns_length(self) -> bool:
        """Does the tokenizer itself say how long a code is? Else it is cut (sids/cut.py)."""
        return False

    @property
    def given(self) -> bool:
        """Were the semantic IDs made elsewhere, so that there is no tokenizer?"""
        return False

    @property
    def variable_length(self) -> bool:
        """May items have codes of unlike length?"""
        return self.target_length is not None or self.learns_length

    def __post_init__(self) -> None:
        if not self.num_emb_list:
            raise Problem("num_emb_list: needs at least one level, as in --num_emb_list=256,256,256")
        if self.target_length is not None and self.target_length > len(self.num_emb_list):
            raise Contradiction(
                f"target_length: {self.target_length} codes of {len(self.num_emb_list)} levels; lower it, or give "
                "num_emb_list more levels",
                {"target_length": len(self.num_emb_list)},
            )


class Source(NamedTuple):
    """All that a tokenizer may see of a data set: nothing of validation or test can be reached from it."""

    content_ND: np.ndarray  # embeddings, any float type, perhaps memory-mapped
    count_N: np.ndarray  # how often each item occurs in the training part
    train: Split  # without the rows that only validation and test reach
    vectors_NV: np.ndarray | None = None  # item vectors of a recommender that was trained on it
    place: Path | None = None  # where what is made of large embeddings may be kept
    digest: str = ""  # of the embeddings' file

    @classmethod
    def of(cls, data: Dataset, vectors_NV: np.ndarray | None = None) -> "Source":
        place = None if data.folder is None else place_of(data.folder, data.name)
        stamp = "" if data.embedding_stamp is None else data.embedding_stamp.digest
        return cls(read_embeddings(data), data.popularity[1:], data.train.alone(), vectors_NV, place, stamp)


class Tokenizer(nn.Module, ABC):
    """Content to codes and back, made of (its Options, width of the content); its state is all it has learned.

    One that is made in one go has `fit(source, seed)`; the others are `Learned`.
    """

    Options: ClassVar[type[CodeOptions]]
    cfg: CodeOptions
    only_pre_training: ClassVar[tuple[str, ...]] = ()  # beginnings of names that a checkpoint may hold beyond its state
    made_later: ClassVar[tuple[str, ...]] = ()  # names of its state that a checkpoint may lack

    @abstractmethod
    def encode(self, content_ND: np.ndarray) -> Tensor:
        """Codes [N, T] of a whole catalogue, int64."""

    @abstractmethod
    def decode(self, code_NT: Tensor) -> Tensor:
        """Reconstruction of `seen` from every prefix of the codes, [N, T, width]."""

    def seen(self, content_ND: np.ndarray) -> "Rows":
        """The rows that are coded: the content, or what is made of it before."""
        return content_ND

    def distances_of(self, content_ND: np.ndarray) -> Distances | None:
        """What `collision: knn` goes by, for tokenizers whose codes lie nearer to an item or further."""
        return None

    def vectors(self, content_ND: np.ndarray, code_NT: Tensor) -> dict[str, Iterator[Tensor]]:
        """Name -> [N, d] in pieces: what an item is represented by inside, for its hit rate."""
        return {}


class Learned(Tokenizer):
    """Learned step by step, in the loop of sids/fit.py."""

    keeps_last = False  # true where no figure tells which state is better
    x_ND: Tensor | None  # the catalogue as the network takes it, where it is held
    rows: "Rows"  # where it is not
    ready = False  # is it there as the network takes it, or has each row to be prepared yet?

    def prepare(self, x_ND: Tensor) -> Tensor:
        """What the network takes of some rows: as they come."""
        return x_ND

    def hold(self, rows: "Rows", width: int, *, ready: bool = False) -> None:
        """Keep the catalogue in memory, or a large one where it is: `rows_of` then reads what a batch needs."""
        self.ready, held, device = ready, None, next(self.parameters()).device
        if is_held(len(rows), width):
            held = torch.empty(len(rows), width, device=device)
            for part, piece in zip(held.split(ROWS), in_pieces(rows), strict=True):
                part.copy_(self._taken(piece.to(device)))
        else:
            self.rows = rows
        self.register_buffer("x_ND", held, persistent=False)

    def _taken(self, x_ND: Tensor) -> Tensor:
        return x_ND if self.ready else self.prepare(x_ND)

    def rows_of(self, rows: Tensor | slice) -> Tensor:
        """The catalogue as the network takes it: some items, [B, width]."""
        if self.x_ND is not None:
            return self.x_ND[rows]
        found = self.rows[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        return self._taken(torch.from_numpy(np.array(found, np.float32)).to(next(self.parameters())))

    def pieces(self) -> Iterator[Tensor]:
        """The same of all items, some at a time."""
        if self.x_ND is not None:
            yield from self.x_ND.split(ROWS)
        else:
            weight = next(self.parameters())
            yield from (self._taken(piece.to(weight)) for piece in in_pieces(self.rows))

    @abstractmethod
    def begin(self, source: Source, size: int, seed: int, *, fresh: bool) -> None:
        """Hold the data; on a fresh start take from them what the first step needs (batches of `size`)."""

    @abstractmethod
    def batches(self, source: Source, size: int, seed: int, epoch: int) -> list[Any]:
        """The batches of an epoch, a function of its arguments."""

    @abstractmethod
    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss to minimise, its parts for the log)."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """After each step; figures for the log."""
        return {}

    def disagreement(self, size: int, seed: int) -> list[float]:
        """Share of items per level whose code in training is another than afterwards; [] where it cannot be."""
        return []


@dataclass(frozen=True)
class Quantized:
    """The learned codes of U items, level by level.

    soft: p_l [U, K], or None where no gradient is wanted; index: the forward pass's codes i_l [U];
    nearest: the deterministic codes [U]; vq, recon: loss terms per item [U]; stochastic: whether an item
    received noise [U]; sampled: the codes under noise [U], whether the forward pass uses them or not.
    """

    index: list[Tensor]
    soft: list[Tensor] | None = None
    nearest: list[Tensor] = dataclasses.field(default_factory=list)
    vq: Tensor | None = None
    recon: Tensor | None = None
    stochastic: list[Tensor] = dataclasses.field(default_factory=list)
    sampled: list[Tensor] = dataclasses.field(default_factory=list)
    blend: bool = False  # assignment_forward: soft
    goal_index: list[Tensor] | None = None  # codes as a target, where they differ from those as history

    def lookup(self, level: int, table_Kh: Tensor) -> Tensor:
        """m_l @ table, [U, h]."""
        p = self.soft[level] if self.soft is not None else None
        if self.blend and p is not None:
            return p @ table_Kh
        return straight_through_lookup(p, self.index[level], table_Kh)

    def soft_label(self, level: int, rows: Tensor, weight: float) -> Tensor:
        """p_l of the items at `rows`, [R, K], with `weight` times its gradient; of assignment_forward: soft."""
        assert self.soft is not None
        p = self.soft[level][rows]
        return p.detach() + weight * (p - p.detach())

    def goal(self) -> "Quantized":
        """The items as targets: with assignment_forward `history` their codes are the catalogue's."""
        return self if self.goal_index is None else dataclasses.replace(self, index=self.goal_index, goal_index=None)

    def detached(self) -> "Quantized":
        """The same codes without the road back to the codebooks."""
        soft = [p.detach() for p in self.soft] if self.blend and self.soft else None
        return dataclasses.replace(self, soft=soft)


class Joined:
    """Content embeddings [N, D] less their mean and at length 1, vectors [N, V] behind them, joined when read."""

    def __init__(self, content_ND: np.ndarray, mean_D: np.ndarray, vector_NV: np.ndarray) -> None:
        self.content_ND, self.mean_D, self.vector_NV = content_ND, mean_D, vector_NV

    def __len__(self) -> int:
        return len(self.content_ND)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        centred = np.array(self.content_ND[rows], np.float32) - self.mean_D
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        return np.concatenate([centred / np.maximum(length, 1e-12), self.vector_NV[rows]], 1)


class UnitRows:
    """Content embeddings [N, D] at length 1, made so when read."""

    def __init__(self, content_ND: np.ndarray) -> None:
        self.content_ND = content_ND

    def __len__(self) -> int:
        return len(self.content_ND)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        row_ND = np.array(self.content_ND[rows], np.float32)
        return row_ND / np.maximum(np.linalg.norm(row_ND, axis=1, keepdims=True), 1e-12)


Rows = np.ndarray | Joined | UnitRows


def is_held(n_items: int, width: int) -> bool:
    """Does training hold so many float32 rows in memory?"""
    return n_items * width * 4 <= HELD


def mean_of(rows: Rows) -> Tensor:
    """The mean row, float64 [D]."""
    return torch.stack([piece.double().sum(0) for piece in in_pieces(rows)]).sum(0) / len(rows)


def in_pieces(content_ND: Rows) -> Iterator[Tensor]:
    """A catalogue's embeddings in float32, some rows at a time."""
    for begin in range(0, len(content_ND), ROWS):
        yield torch.from_numpy(np.array(content_ND[begin : begin + ROWS], np.float32))


def each(network: nn.Module, rows: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """A network in evaluation mode, without gradient, over a catalogue that comes in pieces."""
    was = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        for piece in rows:
            with torch.no_grad():
                found = network(piece.to(device))
            yield found
    finally:
        for module, training in was:
            module.training = training


def joined(pieces: Iterable[Tensor], n: int) -> Tensor:
    """[n, ...] of what comes in pieces. Not kept one by one: a small block behind each large one that is free again
    keeps glibc from using its room.
    """
    found, begin = torch.empty(0), 0
    for piece in pieces:
        found = found if begin else piece.new_empty(n, *piece.shape[1:])
        found[begin : begin + len(piece)] = piece.detach()
        begin += len(piece)
    return found
