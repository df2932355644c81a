"""ETEGRec (arXiv:2409.05546): tokenizer and recommender learn in turn, held together by two alignments.

In some epochs the tokenizer learns and the recommender rests, in the others the reverse; the catalogue takes new SIDs
after the former (docs/beyond-the-paper.md, section 2.5):

    L_tokenizer   = L_recon + w_vq L_vq + mu L_SIA + lambda L_PSA
    L_recommender = L_rec              + mu L_SIA + lambda L_PSA

Shape letters: R rows that a step predicts, U distinct targets of a batch, D embedding width, d latent width, L levels,
K codes of a level, h recommender width.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data import Batch
from joint.moving import JointMethod, LearningOptions
from joint.quantizer import JointRQVAE, QuantizerOptions
from joint.uncertainty import DECAYS, UncertaintyOptions
from layers import MLP, distance
from model import SidParts
from recommenders.base import trainable
from recommenders.protocol import Logs
from settings import option
from sids.tokenizer import Source
from vq import RQVAEOptions

TEMPERATURE = 0.07  # of the cosines in L_PSA


@dataclass(frozen=True, kw_only=True)
class ETEGRecOptions(LearningOptions):
    etegrec_cycle: int = option(2, "epochs per cycle, of which one trains the tokenizer alone", ge=2)
    sequence_alignment: float = option(
        1e-4, "weight of the KL divergence between the codes of a history and those of its target", ge=0
    )
    preference_alignment: float = option(
        3e-4, "weight of the InfoNCE loss between a history's state and its target's reconstructed embedding", ge=0
    )


class Coded(NamedTuple):
    """Items as the tokenizer has them now."""

    logp: list[Tensor]  # log-probabilities of the codes, level by level, [U, K]
    vq_U: Tensor
    recon_U: Tensor
    content_UD: Tensor  # reconstructed


class TrainedRQVAE(JointRQVAE):
    """Encoder, codebooks and decoder learn, without noise."""

    def __init__(self, cfg: RQVAEOptions, n_input: int, seed: int) -> None:
        super().__init__(cfg, QuantizerOptions(freeze_id_encoder=False), n_input, seed)
        self.decoder.requires_grad_(True)

    def coded(self, row_U: Tensor) -> Coded:
        """Rows of the catalogue through the whole tokenizer; the gradient of their codes goes straight through."""
        x_UD = self.rows_of(row_U)
        z_Ud = self.encoder(x_UD)
        logp, q_Ud, vq_U = self.levels_of(z_Ud)
        content_UD = self.decoder(z_Ud + (q_Ud - z_Ud).detach())
        return Coded(logp, vq_U, (content_UD - x_UD).square().mean(1), content_UD)

    def levels_of(self, z_Xd: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """(log softmax(-scale_l |r_l - C_l|^2) of each level, sum of the nearest codes [X, d], L_vq [X]) of latents."""
        r, q_sum, vq, logp = z_Xd, torch.zeros_like(z_Xd), z_Xd.new_zeros(len(z_Xd)), []
        for scale, codebook in zip(self.scale_L, self.rq.codebooks(), strict=True):
            far_XK = distance(r, codebook)
            logp.append((-scale * far_XK).log_softmax(1))
            q = F.embedding(far_XK.argmin(1), codebook)
            vq = vq + self.rq.vq_loss(r, q)
            r, q_sum = r - q.detach(), q_sum + q
        return logp, q_sum, vq / len(logp)


class ETEGRec(JointMethod):
    """The tokenizer learns in the epochs c, 2 c, ... of cycles of c, counted from 0, as long as SIDs may move."""

    option_groups: ClassVar[dict[str, type]] = {"alternating training": ETEGRecOptions}
    tokenizer: TrainedRQVAE
    epoch: Tensor  # epochs that have ended
    turn: Tensor  # 1 in an epoch that is the tokenizer's, else 0: known to the device

    def __init__(self, parts: SidParts, tokenizer: TrainedRQVAE, options: ETEGRecOptions) -> None:
        super().__init__(parts, tokenizer)
        self.options, width = options, self.recommender.width
        self.sequence_head = MLP([width, width, tokenizer.cfg.e_dim])
        self.preference_head = MLP([width, width, tokenizer.width])
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self.register_buffer("turn", torch.zeros(()))

    @classmethod
    def tokenizer_of(cls, codes: RQVAEOptions, n_input: int, seed: int, *groups: Any) -> TrainedRQVAE:
        return TrainedRQVAE(codes, n_input, seed)

    def attach(self, source: Source, longest: int) -> None:
        quiet = UncertaintyOptions(uncertainty="none")
        self.tokenizer.attach(source, DECAYS["none"](quiet, list(self.sizes)))
        super().attach(source, longest)

    def learns(self, epoch: int) -> bool:
        """Is it the tokenizer that learns in an epoch?"""
        return epoch > 0 and epoch % self.options.etegrec_cycle == 0 and self.options.moves(epoch)

    def forward(self, batch: Batch) -> tuple[Tensor, Logs]:
        """(the loss of who learns, all terms for the log); what the other's term sends back weighs nothing."""
        rec = self.sid_loss(batch, self.quantize(batch))
        row_U, target_R = rec.row_R.unique(return_inverse=True)
        with torch.autocast(rec.state_Rh.device.type, enabled=False):
            state_Rh, t = rec.state_Rh.float(), self.tokenizer
            item = t.coded(batch.item_U[row_U] - 1)
            sequence, _, _ = t.levels_of(t.centre_d + t.unit * self.sequence_head(state_Rh))
            losses = {
                "rec": rec.loss, "recon": item.recon_U[target_R].mean(), "vq": item.vq_U[target_R].mean(),
                "sia": sequence_item(sequence, [p[target_R] for p in item.logp]),
                "psa": preference_semantic(self.preference_head(state_Rh), item.content_UD, target_R),
            }  # fmt: skip
        if self.recommender.item_loss:
            losses["item"] = self.item_loss(batch, rec)
        weights: dict[str, Tensor | float] = {
            "rec": 1 - self.turn, "item": (1 - self.turn) * self.recommender.item_loss, "recon": self.turn,
            "vq": self.turn * t.cfg.quant_loss_weight, "sia": self.options.sequence_alignment,
            "psa": self.options.preference_alignment,
        }  # fmt: skip
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        logs = {"loss": loss} | {f"loss/{name}": value for name, value in losses.items()}
        return loss, {name: value.detach() for name, value in logs.items()}

    def param_groups(self) -> list[dict[str, Any]]:
        """The recommender with its two heads, and the tokenizer; what the optimizer knows of who rests, rests too."""
        heads = [*self.sequence_head.parameters(), *self.preference_head.parameters()]
        (rec,) = super().param_groups()
        return [
            rec | {"params": [*rec["params"], *heads], "moves": lambda epoch: not self.learns(epoch), "pauses": True},
            {"name": "id", "params": trainable(self.tokenizer), "lr": self.options.lr_id, "moves": self.learns,
             "pauses": True},
        ]  # fmt: skip

    def refresh(self) -> dict[str, Any]:
        self.epoch += 1
        self.turn.fill_(self.learns(int(self.epoch)))
        return super().refresh()


# ---------------------------------------------------------------- the alignments


def sequence_item(sequence: list[Tensor], item: list[Tensor]) -> Tensor:
    """L_SIA = mean_r mean_l KL(P_l(item) | P_l(sequence)) + KL(P_l(sequence) | P_l(item)), of log-probabilities [R, K]
    of each level: a history's codes are to be its target's.
    """
    levels = [((p.exp() - s.exp()) * (p - s)).sum(1).mean() for s, p in zip(sequence, item, strict=True)]
    return torch.stack(levels).mean()


def preference_semantic(preference_RD: Tensor, content_UD: Tensor, target_R: Tensor) -> Tensor:
    """L_PSA = - mean_r log exp(s_rr / t) / sum_u exp(s_ru / t) + log exp(s_rr / t) / sum_r' exp(s_r'r / t)

    s_ru: cosine of what is preferred in row r and of the u-th distinct target's reconstruction; s_rr that of row r's
    own target, target_R. r' runs over r and the rows whose target is another: InfoNCE in both directions.
    """
    s_RU = F.normalize(preference_RD, dim=1) @ F.normalize(content_UD, dim=1).T / TEMPERATURE
    own_R = s_RU.gather(1, target_R[:, None])[:, 0]
    mine_RU = F.one_hot(target_R, len(content_UD)).bool()
    others_U = s_RU.masked_fill(mine_RU, -torch.inf).logsumexp(0)
    return (s_RU.logsumexp(1) - own_R + torch.logaddexp(others_U[target_R], own_R) - own_R).mean()
