"""The other side: Hugging Face's T5 over the same semantic IDs, used as its documentation says."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration
from transformers.cache_utils import Cache

from data import histories
from model import GenerativeModel
from readers.splits import Split
from recommenders.t5 import T5Network, T5Options
from settings import Config

START = 0  # also pads


class LeveledT5(T5ForConditionalGeneration):  # type: ignore[misc]
    """Only codes of the level at hand have probability, as in a recommender with a table per level."""

    level_mask: Tensor | None = None

    def forward(self, *args: Any, past_key_values: Cache | None = None, **kwargs: Any) -> Any:
        out = super().forward(*args, past_key_values=past_key_values, **kwargs)
        if self.level_mask is not None:
            last = 0 if past_key_values is None else past_key_values.get_seq_length() - 1
            out.logits = out.logits + self.level_mask[last]
        return out


def build(cfg: Config, sizes: tuple[int, ...], *, attention: str = "sdpa") -> LeveledT5:
    """T5 of the configured dimensions; token ids: START, then the codes of each level."""
    r = cfg[T5Options]
    return LeveledT5._from_config(  # type: ignore[no-any-return]
        T5Config(
            d_model=r.d_model, d_kv=r.d_kv, d_ff=r.d_ff, num_heads=r.num_heads, num_layers=r.encoder_layers,
            num_decoder_layers=r.decoder_layers, dropout_rate=r.dropout_rate, feed_forward_proj="relu",
            vocab_size=1 + sum(sizes), tie_word_embeddings=False, pad_token_id=START, eos_token_id=None,
            decoder_start_token_id=START,
        ),
        attn_implementation=attention,
    )  # fmt: skip


@torch.no_grad()
def copy_weights(ours: T5Network, theirs: LeveledT5) -> None:
    """Make Hugging Face's model compute what ours does."""
    table = torch.cat([ours.start[None], *ours.tables])
    theirs.shared.weight.copy_(table)
    theirs.lm_head.weight.copy_(table)
    copy_stacks(ours.t5, theirs)
    begin = 1 + np.cumsum([0, *ours.vocabulary])
    mask = torch.full((len(ours.vocabulary), len(table)), -torch.inf)
    for level, (a, b) in enumerate(pairwise(begin)):
        mask[level, a:b] = 0
    theirs.level_mask = mask.to(table)


@torch.no_grad()
def copy_stacks(ours: Any, theirs: Any) -> None:
    """The weights of our encoder and decoder into Hugging Face's."""
    stacks: list[Any] = [
        (theirs.encoder, ours.encoder, ours.encoder_bias, ours.encoder_norm),
        (theirs.decoder, ours.decoder, ours.decoder_bias, ours.decoder_norm),
    ]
    for stack, layers, bias, norm in stacks:
        stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.copy_(bias.table.weight)
        stack.final_layer_norm.weight.copy_(norm.weight)
        for block, layer in zip(stack.block, layers, strict=True):
            _copy_attention(block.layer[0].SelfAttention, layer.attention)
            if len(block.layer) == 3:
                _copy_attention(block.layer[1].EncDecAttention, layer.cross)
            block.layer[-1].DenseReluDense.wi.weight.copy_(layer.feed.wi.weight)
            block.layer[-1].DenseReluDense.wo.weight.copy_(layer.feed.wo.weight)
            for part, own in zip(block.layer, layer.norms, strict=True):
                part.layer_norm.weight.copy_(own.weight)


def _copy_attention(theirs: Any, ours: Any) -> None:
    key, value = ours.kv.weight.chunk(2)
    for name, weight in {"q": ours.q.weight, "k": key, "v": value, "o": ours.o.weight}.items():
        getattr(theirs, name).weight.copy_(weight)


class Tokens:
    """Samples as token ids: the SIDs of a history in a row, padded on the left."""

    def __init__(self, model: GenerativeModel) -> None:
        vocabulary = model.sids.vocabulary
        offset = 1 + np.cumsum([0, *vocabulary[:-1]])
        sid_NL = model.sids.token_NP.cpu().numpy() + offset
        self.sid_NL = np.concatenate([np.full((1, len(vocabulary)), START), sid_NL])

    def batch(self, split: Split, rows: np.ndarray, longest: int) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels of some samples, padded to the longest among them."""
        history, target = histories(split, rows, longest)
        ids = torch.from_numpy(self.sid_NL[history].reshape(len(rows), -1))
        keep = torch.from_numpy(np.repeat(history > 0, self.sid_NL.shape[1], 1).astype(np.int64))
        return {"input_ids": ids, "attention_mask": keep, "labels": torch.from_numpy(self.sid_NL[target])}


class NestedTrie:
    """Dictionaries in dictionaries, the usual way to constrain `generate`."""

    def __init__(self, sid_NL: np.ndarray) -> None:
        """sid_NL: token ids, a row per item."""
        self.root: dict[int, Any] = {}
        for row in sid_NL.tolist():
            node = self.root
            for token in row:
                node = node.setdefault(token, {})

    def allowed(self, batch_id: int, prefix: Tensor) -> list[int]:
        """`prefix_allowed_tokens_fn`: what may follow START and some codes."""
        node = self.root
        for token in prefix.tolist()[1:]:
            node = node.get(token, {})
        return list(node) or [START]


@torch.inference_mode()
def beams(
    model: LeveledT5, trie: NestedTrie, batch: dict[str, Tensor], width: int, levels: int
) -> tuple[Tensor, Tensor]:
    """(token ids [B, W, L + 1], log-probabilities [B, W]) of `generate`, best first."""
    out = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], num_beams=width,
        num_return_sequences=width, max_new_tokens=levels, do_sample=False, length_penalty=0.0,
        prefix_allowed_tokens_fn=trie.allowed, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    users = len(batch["input_ids"])
    return out.sequences[:, 1:].view(users, width, -1), out.sequences_scores.view(users, width)
