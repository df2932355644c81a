"""Codes of unlike length from any nested code: each item is cut where one more token no longer pays.

Of a code whose every prefix reconstructs the content, item i keeps

    L_i = argmin_t  d_it + mu t,

d_it being its squared error after t tokens and mu the price of a token, one for all items. That minimises the sum of
c_i d_i at a given sum of c_i L_i, whatever the weights c_i (Lagrangian rate-distortion allocation, Shoham and Gersho,
IEEE TASSP 36, 1988; exact where d_it is convex in t). Nothing is trained.

Shape letters: N items, T code positions, D embedding width.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sids.table import collision_rate, numbered
from sids.tokenizer import ROWS, CodeOptions, Tokenizer, in_pieces
from utils import Problem, log

HALVINGS = 60  # of mu's interval: down to the last bit of a double


class Codes(NamedTuple):
    """The codes of a catalogue as they are used, and how well every prefix of the whole ones reconstructs."""

    code_NT: Tensor  # -1 after an item's end
    error_NT: np.ndarray  # squared distance of unit vectors, 0 ... 4, after 1 ... T tokens


@torch.no_grad()
def prefix_errors(model: Tokenizer, code_NT: Tensor, content_ND: np.ndarray) -> np.ndarray:
    """|y_t / |y_t| - x / |x||^2 of every prefix of the codes, [N, T] float64, 0 ... 4; x is what was quantized: the
    content, with the behaviour where the tokenizer has it.
    """
    found = []
    for code, x_ND in zip(code_NT.clamp(min=0).split(ROWS), in_pieces(model.seen(content_ND)), strict=True):
        y_NTD = F.normalize(model.decode(code).cpu(), dim=-1)
        found.append((y_NTD - F.normalize(x_ND, dim=-1)[:, None]).square().sum(-1))
    return torch.cat(found).double().numpy()


def cut(error_NT: np.ndarray, price: float) -> np.ndarray:
    """Lengths [N] where error + price * length is least; of equal ones the shorter."""
    lengths: np.ndarray = (error_NT + price * np.arange(1, error_NT.shape[1] + 1)).argmin(1) + 1
    return lengths


def count_weights(count_N: np.ndarray) -> np.ndarray:
    """Weight of each item by its training count, summing to 1; all alike where nothing was counted."""
    count_N = np.asarray(count_N, np.float64)
    found: np.ndarray = count_N / count_N.sum() if count_N.sum() > 0 else np.full(len(count_N), 1 / len(count_N))
    return found


def cut_to(error_NT: np.ndarray, count_N: np.ndarray, target: float) -> np.ndarray:
    """The lengths [N] of the lowest price at which an interaction's item has at most `target` tokens on average.

    Where more tokens than that are of no use to anybody, fewer are used.
    """
    share_N = count_weights(count_N)
    low, high = 0.0, 4.0  # no error falls by more
    if share_N @ cut(error_NT, low) <= target:
        return cut(error_NT, low)
    for _ in range(HALVINGS):
        price = (low + high) / 2
        low, high = (price, high) if share_N @ cut(error_NT, price) > target else (low, price)
    return cut(error_NT, high)


def shorten(code_NT: Tensor, length_N: np.ndarray) -> Tensor:
    """The first codes of each item, -1 behind."""
    place_T = torch.arange(code_NT.shape[1], device=code_NT.device)
    return code_NT.masked_fill(place_T >= torch.as_tensor(length_N, device=code_NT.device)[:, None], -1)


def relieve(code_NT: Tensor, length_N: np.ndarray, count_N: np.ndarray, most: int) -> np.ndarray:
    """Lengths with which at most `most` items share a code: of a larger group the rarest get one code more, and again.

    Items whose whole codes are equal stay together.
    """
    length_N = length_N.copy()
    for _ in range(code_NT.shape[1]):
        number_N = numbered(shorten(code_NT, length_N), count_N).numpy()
        grows_N = (number_N >= most) & (length_N < code_NT.shape[1])
        if not grows_N.any():
            break
        length_N[grows_N] += 1
    return length_N


def codes_of(model: Tokenizer, content_ND: np.ndarray, count_N: np.ndarray) -> Codes:
    """The codes of a catalogue by a tokenizer's options: as it makes them, or cut to `target_length`."""
    cfg, whole_NT = model.cfg, model.encode(content_ND).cpu()
    error_NT = prefix_errors(model, whole_NT, content_ND)
    if cfg.target_length is None or cfg.learns_length:
        return Codes(whole_NT, error_NT)
    length_N = relieve(whole_NT, cut_to(error_NT, count_N, cfg.target_length), count_N, cfg.max_group)
    reached = float(count_weights(count_N) @ length_N)
    if abs(reached - cfg.target_length) > 0.05:
        log.warning(
            f"target_length: {cfg.target_length} asked for, {reached:.2f} reached: "
            + ("longer codes tell no more items apart" if reached < cfg.target_length
               else f"max_group {cfg.max_group} needs longer ones")
        )
    return Codes(shorten(whole_NT, length_N), error_NT)


def check_usable(code_NT: Tensor, cfg: CodeOptions) -> None:
    """Problem when codes of unlike length say too little: they collapsed."""
    length_N = (code_NT >= 0).sum(1)
    shared = collision_rate(code_NT)
    if shared > cfg.max_shared:
        raise Problem(
            f"target_length: {shared:.0%} of the items share their code with an earlier item (mean length "
            f"{length_N.double().mean():.2f} of {code_NT.shape[1]}); raise target_length or num_emb_list, pre-train "
            f"longer, or allow it with --max_shared={min(1.0, shared + 0.005):.2f}"
        )
