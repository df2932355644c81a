"""Discrete VAE over content embeddings, whose number of tokens can be learned too (arXiv:2602.16375).

A residual encoder emits T soft tokens, a causal decoder reconstructs the content from every prefix, and a stop head
gives the probability that a code is t tokens long. One training example is one interaction, so that both the error and
the price of a token weigh by popularity:

    L = sum_t w_t d_t + beta (sum_t alive_t relu(KL_t - free bits) - H(q(L)) + lambda E[L])

d_t is the squared distance of unit vectors after t tokens, KL_t = ln V - H(token t), q(L) the length posterior,
alive_t = q(L >= t), w_t = (1 - eps) q(L = t) + eps / T. docs/varlen.md has the whole of it, and how lengths are kept
from collapsing.

Shape letters: N items, B rows of a batch, T code places, V symbols, H encoder width, D embedding width.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import Dropout, depth_attention, gumbel
from recommenders.blocks import Stack
from settings import option
from sids.rq_kmeans import RQKMeans, RQKMeansOptions
from sids.tokenizer import ROWS, CodeOptions, Learned, Source, UnitRows, in_pieces
from utils import Contradiction, Problem, log

DROPOUT = 0.1  # of input, blocks and the residual before its logits
LOGIT_SCALE = 15.0  # of the cosine logits at the start; learned
TAU, BETA = (1.0, 0.6), (0.0, 0.002)  # temperature of the soft tokens and weight of the KL terms, first and last
FREE_BITS = 2.0  # information of a token that costs nothing, nats
FLOOR = 0.1  # eps, weight that all prefixes share, whatever the lengths
RAMP = 0.3  # of all steps: TAU and BETA come to their ends, and so does the price of a token after its start
LOOK = 100  # steps between two looks at the lengths
ETA = 0.02  # how fast the price of a token follows the mean length


@dataclass(frozen=True, kw_only=True)
class DiscreteOptions(CodeOptions):
    """The networks of a discrete autoencoder, and what it is trained on."""

    num_emb_list: list[int] = option([256] * 4, "number of symbols per position, the same for all positions", ge=2)
    weights: Literal["uniform", "counts"] = option(
        "counts", "weight of an item in training: all alike (uniform) or its training count (counts)"
    )
    dvae_width: int = option(128, "width of the encoder", ge=1)
    dvae_decoder_width: int = option(128, "width of the decoder, at least 4", ge=4)
    shared_codebook: bool = option(True, "whether all positions share one codebook")
    dvae_steps: int = option(6000, "number of training steps over which the schedules run", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.num_emb_list)) > 1:
            raise Contradiction(
                f"num_emb_list: {self.num_emb_list}: this tokenizer has one vocabulary for all levels, so all numbers "
                "must be the same",
                {"num_emb_list": [max(self.num_emb_list)] * len(self.num_emb_list)},
            )


LEARNED = ("length: learned",)


@dataclass(frozen=True, kw_only=True)
class DVAEOptions(DiscreteOptions):
    length: Literal["fixed", "cut", "learned"] = option(
        "cut",
        "SID length: fixed = only whole codes are trained, cut = every prefix is trained, so that codes can be cut to "
        "target_length, learned = a stop head decides, and the price of a token follows target_length",
    )
    length_cost: float = option(
        20.0, "price of a token in nats; with target_length its initial value", ge=0, needs=LEARNED
    )
    length_warmup: float = option(
        0.4, "share of dvae_steps during which length costs nothing, 0 to 0.7", ge=0, le=0.7, needs=LEARNED
    )
    taught_share: float = option(
        0.0,
        "share of dvae_steps, from the start, in which the codes of residual k-means are imitated, 0 to 0.7",
        ge=0, le=0.7,
    )

    @property
    def learns_length(self) -> bool:
        return self.length == "learned"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length == "fixed" and self.target_length is not None:
            raise Contradiction(
                "length: fixed trains whole codes only; with target_length use length: cut or learned",
                {"length": "cut"}, {"target_length": None},
            )  # fmt: skip


# ---------------------------------------------------------------- formulas


def cosine(start: float, end: float, step: float, steps: float) -> float:
    """From start to end over `steps` steps, then constant."""
    done = min(1.0, step / steps) if steps > 0 else 1.0
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))


def length_posterior(stop_BS: Tensor) -> Tensor:
    """ln q(L = t), [B, T], of the T - 1 stop logits s_t: ln sigma(s_t) + sum of ln sigma(-s_j) over j < t."""
    on_BS = F.logsigmoid(-stop_BS).cumsum(1)
    return torch.cat([F.logsigmoid(stop_BS), torch.zeros_like(stop_BS[:, :1])], 1) + F.pad(on_BS, (1, 0))


def alive(logq_BT: Tensor) -> Tensor:
    """q(L >= t), [B, T]."""
    return logq_BT.exp().flip(1).cumsum(1).flip(1)


def kl_to_uniform(logits_BTV: Tensor) -> Tensor:
    """ln V - H, [B, T]."""
    logp_BTV = logits_BTV.log_softmax(-1)
    return (math.log(logits_BTV.shape[-1]) + (logp_BTV.exp() * logp_BTV).sum(-1)).clamp(min=0)


class Terms(NamedTuple):
    """Means over a batch; the loss is rec + beta (voc + length)."""

    rec: Tensor
    exact: Tensor  # sum_t q(L = t) d_t, without the baseline of the prefixes
    voc: Tensor
    length: Tensor  # -H(q) + lambda E[L]: KL to the truncated geometric prior, but for its ln Z


def terms(d_BT: Tensor, kl_BT: Tensor, logq_BT: Tensor, *, baseline: float, free_bits: float, price: float) -> Terms:
    """The terms of the loss of codes with a length posterior."""
    q_BT, places = logq_BT.exp(), d_BT.shape[1]
    w_BT = (1 - baseline) * q_BT + baseline / places
    t_T = torch.arange(1, places + 1, device=d_BT.device)
    return Terms(
        (w_BT * d_BT).sum(1).mean(),
        (q_BT * d_BT).sum(1).mean(),
        (alive(logq_BT) * (kl_BT - free_bits).relu()).sum(1).mean(),
        (q_BT * (logq_BT + price * t_T)).sum(1).mean(),
    )


def lengths_of(logq_BT: Tensor) -> Tensor:
    """The likeliest length [B] of each code; of equal probabilities the shorter."""
    q_BT = logq_BT.exp()
    best = q_BT >= q_BT.max(1, keepdim=True).values
    return best.long().argmax(1) + 1


# ---------------------------------------------------------------- the networks


class Sent(NamedTuple):
    """What the encoder says of B items."""

    logits_BTV: Tensor
    message_BTV: Tensor | None  # soft tokens, in training
    code_BT: Tensor  # the likeliest symbols
    logq_BT: Tensor | None  # length posterior, where there is a stop head


def backbone(n_input: int, width: int) -> nn.Sequential:
    return nn.Sequential(Dropout(DROPOUT), nn.Linear(n_input, width), nn.LayerNorm(width), nn.GELU())


class Sender(nn.Module):
    """h_1 = f(x), a_t = scale_t cos(h_t, C), h_{t+1} = norm(h_t - gamma_t m_t C): tokens one by one."""

    place_T: Tensor

    def __init__(self, cfg: DiscreteOptions, n_input: int, *, stops: bool) -> None:
        super().__init__()
        places, symbols, width = len(cfg.num_emb_list), cfg.num_emb_list[0], cfg.dvae_width
        self.f = backbone(n_input, width)
        tables = 1 if cfg.shared_codebook else places
        self.code = nn.Parameter(torch.randn(tables, symbols, width) * 0.02)
        self.scale_T = nn.Parameter(torch.full((places,), math.log(LOGIT_SCALE)))
        self.gamma_T = nn.Parameter(torch.full((places,), math.log(0.2)))
        self.norm, self.dropout, self.places = nn.RMSNorm(width), Dropout(DROPOUT), places
        self.stop: nn.ModuleDict | None = None
        if stops and places > 1:
            self.stop = nn.ModuleDict({
                "backbone": backbone(n_input, width),
                "stack": Stack(width, 4 * width, 1, DROPOUT),
                "place": nn.Embedding(places, width),
                "out": nn.Sequential(Dropout(DROPOUT), nn.Linear(width, 1)),
            })  # fmt: skip
            self.register_buffer("place_T", torch.arange(places), persistent=False)
            self.bias_S = nn.Parameter(torch.full((places - 1,), -2.0))

    def forward(self, x_BD: Tensor, tau: float | None = None, given_BT: Tensor | None = None) -> Sent:
        """tau: the temperature of soft tokens under Gumbel noise; None: hard tokens, no noise.

        given_BT: codes that are sent whatever the logits say.
        """
        h_BH, states, logits, messages, codes = self.f(x_BD), [], [], [], []
        for t in range(self.places):
            logits.append(self.logits(h_BH, t))
            codes.append(logits[-1].argmax(1) if given_BT is None else given_BT[:, t])
            if tau is None:
                taken_BH = F.embedding(codes[-1], self.table(t))
            else:
                noise_BV = gumbel(torch.rand_like(logits[-1]).clamp(1e-7, 1 - 1e-7))
                messages.append(((logits[-1] + noise_BV) / tau).softmax(1))
                taken_BH = messages[-1] @ self.table(t)
            if t + 1 < self.places:
                h_BH = self.rest(h_BH, taken_BH, t)
                states.append(h_BH)
        message = torch.stack(messages, 1) if messages else None
        return Sent(torch.stack(logits, 1), message, torch.stack(codes, 1), self._posterior(x_BD, states))

    def table(self, t: int) -> Tensor:
        return self.code[t % len(self.code)]

    def logits(self, h_BH: Tensor, t: int) -> Tensor:
        cos_BV = F.normalize(self.dropout(h_BH), dim=1) @ F.normalize(self.table(t), dim=1).T
        return self.scale_T[t].exp() * cos_BV

    def rest(self, h_BH: Tensor, taken_BH: Tensor, t: int) -> Tensor:
        """What a token leaves to the next ones."""
        left: Tensor = self.norm(h_BH - self.gamma_T[t].exp() * taken_BH)
        return left

    def _posterior(self, x_BD: Tensor, states: list[Tensor]) -> Tensor | None:
        """The decision after token t sees x and the residual states up to the one after it."""
        if self.stop is None:
            return None
        u_BTH = torch.stack([self.stop["backbone"](x_BD), *states], 1) + self.stop["place"](self.place_T)
        heads = max(1, u_BTH.shape[2] // 64)
        y_BTH = self.stop["stack"](u_BTH, [lambda qkv: depth_attention(qkv, heads)])
        return length_posterior(self.stop["out"](y_BTH[:, 1:])[..., 0] + self.bias_S)


class Receiver(nn.Module):
    """Reconstructions from every prefix of soft tokens or of codes: unit vectors [B, T, D].

    sums: each token has a vector of its own too; their sum, as of residual k-means, is what the network corrects.
    """

    def __init__(self, cfg: DiscreteOptions, n_output: int, *, sums: bool) -> None:
        super().__init__()
        places, symbols, width = len(cfg.num_emb_list), cfg.num_emb_list[0], cfg.dvae_decoder_width
        tables = 1 if cfg.shared_codebook else places
        self.table = nn.Parameter(torch.randn(tables, symbols, width) * width**-0.5)
        self.place, self.heads = nn.Embedding(places, width), max(1, width // 64)
        nn.init.normal_(self.place.weight, std=0.1 * width**-0.5)  # a place must not drown what the tokens say
        self.stack = Stack(width, 4 * width, 1, DROPOUT)
        self.out, self.sum_TVD = nn.Linear(width, n_output), None
        if sums:
            self.sum_TVD = nn.Parameter(torch.zeros(places, symbols, n_output))  # times D^-1/2: Adam's steps fit it
            for p in self.out.parameters():
                nn.init.zeros_(p)

    def forward(self, message_BTV: Tensor) -> Tensor:
        return self._decode(lambda tables: torch.einsum("btv,tvh->bth", message_BTV, tables), message_BTV.shape[1])

    def decode(self, code_BT: Tensor) -> Tensor:
        return self._decode(
            lambda tables: torch.stack([tables[t][c] for t, c in enumerate(code_BT.unbind(1))], 1), code_BT.shape[1]
        )

    def _decode(self, read: Callable[[Tensor], Tensor], places: int) -> Tensor:
        """read: what the tokens have in tables [T, V, x], [B, T, x]."""
        attend = [lambda qkv: depth_attention(qkv, self.heads)] * len(self.stack.blocks)
        y_BTD = self.out(self.stack(read(self.table.expand(places, -1, -1)) + self.place.weight[:places], attend))
        if self.sum_TVD is not None:
            y_BTD = y_BTD + read(self.sum_TVD[:places]).cumsum(1) * y_BTD.shape[-1] ** -0.5
        return F.normalize(y_BTD, dim=-1)


class Discrete(Learned):
    """What discrete autoencoders share: sender, receiver, and interactions as examples."""

    keeps_last = True  # the schedules end at the last step

    def __init__(self, cfg: DiscreteOptions, n_input: int, *, stops: bool, sums: bool = False) -> None:
        super().__init__()
        self.cfg: Any = cfg
        self.sender, self.receiver = Sender(cfg, n_input, stops=stops), Receiver(cfg, n_input, sums=sums)

    def prepare(self, x_ND: Tensor) -> Tensor:
        """Unit vectors."""
        return F.normalize(x_ND, dim=1)

    @abstractmethod
    def spell(self, x_BD: Tensor) -> Tensor:
        """The likeliest codes of unit vectors, [B, T]; -1 after an end."""

    def seen(self, content_ND: np.ndarray) -> UnitRows:
        """What is coded: the directions of the content."""
        return UnitRows(content_ND)

    @torch.no_grad()
    def encode(self, content_ND: np.ndarray) -> Tensor:
        """Codes [N, T] by the likeliest symbols; -1 after an item's end, where that is learned."""
        was, _ = self.training, self.eval()
        device = self.receiver.table.device
        found = torch.cat([self.spell(F.normalize(x_ND.to(device), dim=1)) for x_ND in in_pieces(content_ND)])
        self.train(was)
        return found

    @torch.no_grad()
    def decode(self, code_NT: Tensor) -> Tensor:
        """Unit vectors from the first 1, 2 ... T codes, [N, T, D]."""
        was, _ = self.training, self.eval()
        found = torch.cat([self.receiver.decode(piece) for piece in code_NT.to(self.receiver.table.device).split(ROWS)])
        self.train(was)
        return found

    def begin(self, source: Source, size: int, seed: int, *, fresh: bool) -> None:
        """Hold the catalogue as unit vectors."""
        if len(self.batches(source, size, seed, 0)) == 0:
            raise Problem(f"rqvae_batch_size: {size} is more than the training part's interactions; lower it")
        self.hold(source.content_ND, source.content_ND.shape[1])

    def batches(self, source: Source, size: int, seed: int, epoch: int) -> list[Tensor]:
        """Item rows of the training interactions in a fresh random order, `size` at a time, whole batches only.

        With `weights: uniform` as many rows, of all items alike.
        """
        random = np.random.default_rng([seed, epoch, 17])
        total, items = int(source.count_N.sum()), len(source.count_N)
        if self.cfg.weights == "counts":
            rows = random.permutation(np.repeat(np.arange(items), source.count_N.astype(np.int64)))
        else:
            rows = np.concatenate([random.permutation(items) for _ in range(-(-total // items))])[:total]
        whole = len(rows) // size * size
        return list(torch.from_numpy(rows[:whole]).split(size)) if whole else []


def residual_kmeans(cfg: DVAEOptions, source: Source, seed: int) -> RQKMeans:
    """What is learned from: residual k-means by the same weights."""
    options = RQKMeansOptions(
        num_emb_list=cfg.num_emb_list, weights=cfg.weights, kmeans_iters=20, kmeans_start="greedy"
    )
    model = RQKMeans(options, source.content_ND.shape[1])
    model.fit(source, seed)
    return model


class DVAE(Discrete):
    Options: ClassVar[type[DVAEOptions]] = DVAEOptions
    price: Tensor

    def __init__(self, cfg: DVAEOptions, n_input: int) -> None:
        super().__init__(cfg, n_input, stops=cfg.learns_length, sums=cfg.taught_share > 0)
        self.register_buffer("price", torch.tensor(cfg.length_cost))
        self.lesson: Callable[[], Tensor] | None = None

    def begin(self, source: Source, size: int, seed: int, *, fresh: bool) -> None:
        super().begin(source, size, seed, fresh=fresh)
        teacher = cache(lambda: residual_kmeans(self.cfg, source, seed))
        self.lesson = cache(lambda: teacher().encode(source.content_ND).to(self.receiver.table.device))
        if fresh and self.receiver.sum_TVD is not None:
            centre_TVD = torch.stack(teacher().centres()) * source.content_ND.shape[1] ** 0.5
            self.receiver.sum_TVD.data.copy_(centre_TVD)

    def spell(self, x_BD: Tensor) -> Tensor:
        sent = self.sender(x_BD)
        code_BT: Tensor = sent.code_BT
        if sent.logq_BT is None:
            return code_BT
        place_T = torch.arange(code_BT.shape[1], device=code_BT.device)
        return code_BT.masked_fill(place_T >= lengths_of(sent.logq_BT)[:, None], -1)

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of item rows at a step of the schedules."""
        cfg, x_BD = self.cfg, self.rows_of(batch)
        if step < cfg.taught_share * cfg.dvae_steps:
            return self._lesson(x_BD, batch)
        tau = cosine(*TAU, step, RAMP * cfg.dvae_steps)
        beta = cosine(*BETA, step, RAMP * cfg.dvae_steps)
        sent = self.sender(x_BD, tau)
        d_BT = (self.receiver(sent.message_BTV) - x_BD[:, None]).square().sum(-1)
        kl_BT = kl_to_uniform(sent.logits_BTV)
        if sent.logq_BT is None:
            rec = d_BT[:, -1].mean() if cfg.length == "fixed" else d_BT.mean()
            voc = (kl_BT - FREE_BITS).relu().sum(1).mean()
            return rec + beta * voc, {"recon": rec, "tokens": voc, "last": d_BT[:, -1].mean()}
        share = self._length_share(step)
        baseline = 1 + share * (FLOOR - 1)
        t = terms(d_BT, kl_BT, sent.logq_BT, baseline=baseline, free_bits=FREE_BITS, price=share * float(self.price))
        self._watch(x_BD, step, share)
        expected = (sent.logq_BT.exp() * torch.arange(1, d_BT.shape[1] + 1, device=d_BT.device)).sum(1).mean()
        parts = {"recon": t.rec, "exact": t.exact, "tokens": t.voc, "E[L]": expected, "price": self.price.clone()}
        return t.rec + beta * (t.voc + t.length), parts

    def _lesson(self, x_BD: Tensor, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sender learns the given codes, the receiver to reconstruct from their prefixes."""
        assert self.lesson is not None
        code_BT = self.lesson()[batch.to(x_BD.device)]
        logits_BTV = self.sender(x_BD, given_BT=code_BT).logits_BTV
        told = F.cross_entropy(logits_BTV.flatten(0, 1), code_BT.flatten())
        d_BT = (self.receiver.decode(code_BT) - x_BD[:, None]).square().sum(-1)
        rec = d_BT[:, -1].mean() if self.cfg.length == "fixed" else d_BT.mean()
        right = (logits_BTV.argmax(2) == code_BT).double().mean()
        return rec + told, {"recon": rec, "taught": told, "right": right, "last": d_BT[:, -1].mean()}

    def _length_share(self, step: int) -> float:
        """How much of the price and of the lengths' own weights counts at a step: 0 in the warm-up, then 1."""
        warm, total = self.cfg.length_warmup, self.cfg.dvae_steps
        return cosine(0.0, 1.0, max(0.0, step - warm * total), RAMP * total) if warm else 1.0

    @torch.no_grad()
    def _watch(self, x_BD: Tensor, step: int, share: float) -> None:
        """Let the price follow the target; name a collapse.

        A batch is drawn by popularity, so that its mean is the weighted one. Hard codes decide, not E[L]; a price that
        follows quickly overshoots until all codes have one token.
        """
        if (share < 0.5 and step % LOOK) or not self.training:
            return
        self.eval()
        length_B = lengths_of(self.sender(x_BD).logq_BT)  # type: ignore[arg-type]
        self.train()
        if share >= 0.5 and self.cfg.target_length is not None:
            self.price += ETA * (length_B.double().mean() - self.cfg.target_length).float()
            self.price.clamp_(min=0)
        if step % LOOK:
            return
        histogram = length_B.bincount(minlength=len(self.cfg.num_emb_list) + 1)[1:].tolist()
        log.info(f"tokenizer step {step}: lengths {histogram}, price of a token {float(self.price) * share:.2f}")
        shortest = int(length_B.max()) == 1
        if share == 1 and step >= 0.1 * self.cfg.dvae_steps and shortest:
            raise Problem(
                f"length_cost: every code has one token at step {step}: the lengths have collapsed; raise "
                f"length_warmup from {self.cfg.length_warmup}, lower length_cost from {self.cfg.length_cost}, or use "
                "length: cut"
            )
