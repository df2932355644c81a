"""Language models over the tokens of semantic IDs: any causal one of transformers, any encoder-decoder of it.

Stacks and caches are transformers' own. The codes of a SID are new tokens beside the vocabulary, with a table a
position, which is tied with the logits of that position. In a search a user's history is read once, whatever the
number of beams. The beams of a causal model are queries of one row, whose mask shows each of them the history and its
own tokens (as in SpecInfer, arXiv:2305.09781). Those of an encoder-decoder share the keys of the source.

Shape letters: B users, S history items, P positions of a SID, T places of a sequence, U distinct items of a batch,
R rows (targets of a batch; in a search B W), W beams of a user, V tokens of a position, H heads, h width, d width of a
head.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from data import Batch
from layers import rows_of
from recommenders import pretrained
from recommenders.pretrained import LanguageModelOptions
from recommenders.protocol import NetworkOutput, Scorer
from recommenders.tokens import TokenNetwork, packed
from utils import Problem, one_line, read_json, write_json

STD = 0.02  # of new tokens beside no pre-trained ones
Spelled = tuple[Tensor, Tensor]  # vectors [B, T, h] and which of them are there [B, T]


class LanguageModel(TokenNetwork):
    """What both kinds share: stacks of transformers without their tables, which stand here."""

    Options: ClassVar[type[LanguageModelOptions]] = LanguageModelOptions
    auto: ClassVar[str]  # the class of transformers that makes the model
    small: ClassVar[dict[str, Any]]  # its configuration where none is named
    taught: Literal["one", "next"] = "one"
    words: Tensor  # vectors of the vocabulary, [words, h]: they rest
    unwords: Tensor | None  # their logits' table where it is another one
    before: Tensor | None  # token ids of a prompt before a history, and behind it
    behind: Tensor | None

    def __init__(self, cfg: LanguageModelOptions, *sizes: Any) -> None:
        super().__init__(cfg, *sizes)
        self.lm = pretrained.completed(cfg.lm or self.small)
        model = pretrained.untrained(self.lm, self.auto)
        table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        self.scale_in, self.scale_out = self._scales(model)
        self.register_buffer("words", table.detach())
        self.register_buffer("unwords", None if head is table else head.detach())
        for name in ("before", "behind"):
            self.register_buffer(name, None)
        self.stacks = nn.ModuleDict(self._stacks(model))
        for stack in self.stacks.values():
            if stack.get_input_embeddings().weight is not table:  # type: ignore[operator]
                raise Problem(
                    f"lm: {self.lm['model_type']} has other embeddings for output than for input; set "
                    "tie_word_embeddings: true in lm"
                )
            stack.set_input_embeddings(nn.Identity())  # type: ignore[operator]
            if cfg.lora_rank:
                pretrained.adapted(stack, cfg.lora_rank)
            if cfg.gradient_checkpointing:
                stack.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        self.tables = nn.ParameterList(torch.randn(v, self.words.shape[1]) * STD for v in self.vocabulary)
        self._check_places(model.config)

    def _stacks(self, model: Any) -> dict[str, nn.Module]:
        """The parts of a model that are kept, by name."""
        raise AssertionError("a language model has stacks")

    def hidden(self, model: Any, id_BT: Tensor) -> Tensor:
        """What a model of transformers turns into logits, [B, T, h]."""
        raise AssertionError("a language model has hidden states")

    @torch.no_grad()
    def _scales(self, model: Any) -> tuple[float, float]:
        """Factors on vectors that come in, and on states before they meet the logits' table, as this model has them."""
        ids = torch.tensor([[0, 1, 1, 0]])
        try:
            state, logits = self.hidden(model.eval(), ids), model(**self._asked(ids)).logits
            plain = state @ model.get_output_embeddings().weight.T
            scale = float((logits * plain).sum() / plain.square().sum())
            vector, row = model.get_input_embeddings()(ids), model.get_input_embeddings().weight[ids]
            into = float((vector * row).sum() / row.square().sum())
        except Exception as e:
            raise Problem(
                f"lm: {self.lm['model_type']} cannot be run with these sizes ({one_line(e)}); change them in lm"
            ) from None
        same = torch.allclose(scale * plain, logits, atol=1e-5) and torch.allclose(into * row, vector, atol=1e-5)
        if not same:
            raise Problem(
                f"lm: {self.lm['model_type']} does not score tokens by a product with their embeddings; choose "
                "another model_type"
            )
        model.train()
        return round(into, 6), scale

    def _asked(self, id_BT: Tensor) -> dict[str, Tensor]:
        """What a model of transformers is called with."""
        return {"input_ids": id_BT, "attention_mask": torch.ones_like(id_BT)}

    def _check_places(self, config: Any) -> None:
        """Problem where a model has fewer places than the longest sequence."""
        limits = [getattr(config, key, None) for key in ("max_position_embeddings", "sliding_window")]
        words = sum(len(ids) for ids in (self.before, self.behind) if ids is not None)
        last = 0 if config.is_encoder_decoder else len(self.vocabulary) - 1  # of the target, behind the history
        need = words + self.longest * len(self.vocabulary) + last
        if need > (places := min(filter(None, limits), default=need)):
            raise Problem(
                f"lm: {self.lm['model_type']} reads {places} tokens at most, a history of {self.longest} items needs "
                f"{need}; lower max_his_len, or raise max_position_embeddings (or sliding_window) in lm"
            )

    @torch.no_grad()
    def _check_search(self) -> None:
        """Problem where a search gives other logits than training: not every model reads a mask or places of one's own.

        Two items, whose tokens are all 0 and all 1, follow one history.
        """
        P, items = len(self.vocabulary), torch.tensor([1, 2])
        if min(self.vocabulary) < 3:  # 1 may stand behind an item's end
            return
        tokens = lambda item: (item - 1)[..., None].expand(*item.shape, P)  # noqa: E731
        both = items.expand(2, 2)
        batch = Batch(both, items, items, items, both - 1, items - 1, items > 0, torch.tensor(1.0))
        self.eval()
        try:
            vector_UPh = self.look_up(tokens(items))
            *_, want_RV = self(vector_UPh, batch, vector_UPh).logits
            score = self.scorer(tokens, items[None])
            found_RV = score(0, None, None)
            for position in range(1, P):
                found_RV = score(position, items - 1, items - 1 if position > 1 else torch.zeros_like(items))
        except Exception as e:
            raise Problem(
                f"lm: {self.lm['model_type']} cannot be used in beam search ({one_line(e)}); choose another "
                "model_type"
            ) from None
        self.train()
        want_RV = want_RV[-1:] if P == 1 else want_RV[len(want_RV) // 2 - 1 :: len(want_RV) // 2]
        if not torch.allclose(want_RV.log_softmax(-1), found_RV, atol=1e-3):
            raise Problem(
                f"lm: {self.lm['model_type']} gives other scores in beam search than in training; choose another "
                "model_type"
            )

    def begin(self) -> None:
        """Take the weights of the pre-trained model, and the prompt as its tokenizer reads it; Problem where they, or
        the model, cannot be used.
        """
        self._check_search()
        if self.cfg.lm_path is None:
            return
        folder = pretrained.folder_of(self.cfg)
        if pretrained.config_of(folder) != self.lm:
            raise Problem(f"lm: differs from the configuration in {folder}; leave out lm or lm_path")
        model = pretrained.weights_of(folder, self.auto)
        self.words.copy_(model.get_input_embeddings().weight.detach())
        if self.unwords is not None:
            self.unwords.copy_(model.get_output_embeddings().weight.detach())
        for name, stack in self._stacks(model).items():
            pretrained.take_state(self.stacks[name], stack.state_dict())
        with torch.no_grad():
            for table in self.tables:  # new tokens of the size of the old ones
                table.mul_(float(self.words.std()) / STD)
        if self.cfg.prompt is not None:
            self.before, self.behind = pretrained.prompt_ids(folder, len(self.words), self.cfg.prompt)
            self._check_places(model.config)

    def resting(self) -> list[str]:
        learned = {name for name, p in self.named_parameters() if p.requires_grad}
        return [] if self.cfg.lm_path is None else [name for name in self.state_dict() if name not in learned]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("before", "behind"):  # as long as the prompt is
            if self.cfg.prompt is not None and isinstance(held := state_dict.get(prefix + name), Tensor):
                setattr(self, name, torch.zeros_like(held, device=self.words.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def read(self, token_BSPh: Tensor, there_BSP: Tensor) -> Spelled:
        """A history between the prompt's words, as vectors and which of them are there."""
        x, there = [token_BSPh.flatten(1, 2)], [there_BSP.flatten(1)]
        if self.before is not None and self.behind is not None:
            words = [self.words[ids].to(x[0].dtype).expand(len(x[0]), -1, -1) for ids in (self.before, self.behind)]
            x = [words[0], *x, words[1]]
            there = [there_BSP.new_ones(words[0].shape[:2]), *there, there_BSP.new_ones(words[1].shape[:2])]
        return torch.cat(x, 1) * self.scale_in, torch.cat(there, 1)

    def there(self, history_BS: Tensor, real_BSP: Tensor | None) -> Tensor:
        """Which tokens of a history are there, [B, S, P]."""
        there_BSP = (history_BS > 0)[..., None].expand(-1, -1, len(self.vocabulary))
        return there_BSP if real_BSP is None else there_BSP & real_BSP

    # ---- as transformers has it

    def as_transformers(self) -> Any:
        """The model of transformers whose vocabulary ends with the tokens of all positions, one position after the
        other.
        """
        table = torch.cat([self.words, *(t.detach() for t in self.tables)]).cpu()
        model = pretrained.untrained({**self.lm, "vocab_size": len(table)}, self.auto)
        stacks: dict[str, Any] = self._stacks(model)
        for name, stack in stacks.items():
            words = stack.get_input_embeddings()
            stack.set_input_embeddings(nn.Identity())
            stack.load_state_dict(pretrained.plain_state(self.stacks[name]))
            stack.set_input_embeddings(words)
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(table)
            if self.unwords is not None:
                table = torch.cat([self.unwords.cpu(), table[len(self.words) :]])
            model.get_output_embeddings().weight.copy_(table)
        return model.eval()

    def export(self, folder: Path) -> None:
        self.as_transformers().save_pretrained(folder / "lm")
        file = folder / "lm" / "config.json"  # where T5 forgets that its outputs are not scaled
        write_json(file, read_json(file) | {k: v for k, v in self.lm.items() if k == "tie_word_embeddings"})


# ---------------------------------------------------------------- causal


class CausalLM(LanguageModel):
    """One sequence: the history, then the target. Every item that follows another is a target, but behind a prompt."""

    auto = "AutoModelForCausalLM"
    small: ClassVar[dict[str, Any]] = {
        "model_type": "qwen2", "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    }  # fmt: skip

    def __init__(self, cfg: LanguageModelOptions, *sizes: Any) -> None:
        super().__init__(cfg, *sizes)
        self.targets: Literal["one", "next"] = "next" if cfg.prompt is None else "one"

    def _stacks(self, model: Any) -> dict[str, nn.Module]:
        return {"body": model.base_model}

    def hidden(self, model: Any, id_BT: Tensor) -> Tensor:
        found: Tensor = model.base_model(**self._asked(id_BT)).last_hidden_state
        return found

    def _states(self, x_BTh: Tensor, **more: Any) -> Tensor:
        found: Tensor = self.stacks["body"](inputs_embeds=x_BTh, **more).last_hidden_state
        return found * self.scale_out

    def forward(
        self, history_UPh: Tensor, batch: Batch, teacher_UPh: Tensor, open_UP: Tensor | None = None,
        real_UP: Tensor | None = None,
    ) -> NetworkOutput:  # fmt: skip
        """Teacher-forced logits [R, V] of each target, position by position; where open_UP says so, of those targets
        only whose token is a choice there.

        What is there stands at the left end, so that no mask is needed: what comes behind a token it does not see.
        """
        P, S = len(self.vocabulary), batch.history_BS.shape[1]
        real_BSP = None if real_UP is None else real_UP[batch.history_row_BS]
        x_BTh, there_BT = self.read(rows_of(history_UPh, batch.history_row_BS), self.there(batch.history_BS, real_BSP))
        target_BPh = rows_of(teacher_UPh, batch.target_row_B)
        spelled_BP = there_BT.new_ones(target_BPh.shape[:2]) if real_UP is None else real_UP[batch.target_row_B]
        x_BTh = torch.cat([x_BTh, target_BPh[:, :-1] * self.scale_in], 1)
        there_BT = torch.cat([there_BT, spelled_BP], 1)
        place_BT = there_BT.cumsum(1) - 1  # of each token once packed
        hidden_BTh = self._states(packed(x_BTh, there_BT[:, :-1])[0], use_cache=False)
        T = hidden_BTh.shape[1]
        first_BS = place_BT[:, -P:][:, :1]  # of the target, and of each item but the oldest
        if self.targets == "next":
            first_BS = torch.cat([place_BT[:, : S * P : P][:, 1:], first_BS], 1)
        row_B1 = torch.arange(len(first_BS), device=first_BS.device)[:, None] * T
        # the state one place before an item's first token foretells it
        before_R = (row_B1 + first_BS - 1)[batch.history_BS > 0 if self.targets == "next" else ...].flatten()
        flat_Xh = hidden_BTh.flatten(0, 1)
        states = (flat_Xh[before_R + position] for position in range(P))
        return self.spelled(flat_Xh[before_R], states, batch.goals(self.targets), open_UP)

    def scorer(self, tokens: Callable[[Tensor], Tensor], history_BS: Tensor) -> Scorer:
        """The scorer that `beam_search` asks. The cache holds a user's history once; behind it stand the tokens of all
        his beams, and the mask says whose they are.
        """
        from transformers import DynamicCache

        token_BSP = tokens(history_BS)
        x_BTh, there_BT = packed(*self.read(self.look_up(token_BSP), self.there(history_BS, self.real(token_BSP))))
        users, length_B = len(x_BTh), there_BT.sum(1)
        past = DynamicCache()
        hidden_BTh = self._states(x_BTh, past_key_values=past, use_cache=True)
        start_Bh = hidden_BTh[torch.arange(users, device=length_B.device), length_B - 1]
        own_BWK = there_BT.new_zeros(0)  # whether a beam descends from a token behind the history

        def score(
            position: int, token_R: Tensor | None, parent_R: Tensor | None, candidates_RC: Tensor | None = None
        ) -> Tensor:
            """Log-probabilities of the tokens at a position behind each row, whose keys and values the cache holds."""
            nonlocal own_BWK
            if token_R is None or parent_R is None:  # another search for the same users may begin
                if surplus := past.get_seq_length() - there_BT.shape[1]:
                    past.crop(-surplus)
                own_BWK = there_BT.new_zeros(users, 1, 0)
                return self.scores(position, start_Bh, candidates_RC)
            row_BW = parent_R.view(users, -1) - torch.arange(users, device=parent_R.device)[:, None] * own_BWK.shape[1]
            beams = row_BW.shape[1]
            mine_BWK = own_BWK.gather(1, row_BW[..., None].expand(-1, -1, own_BWK.shape[2]))
            self_BWW = torch.eye(beams, dtype=torch.bool, device=row_BW.device).expand(users, -1, -1)
            own_BWK = torch.cat([mine_BWK, self_BWW], 2)
            mask_BWK = torch.cat([there_BT[:, None].expand(-1, beams, -1), own_BWK], 2)
            x_BWh = (self.tables[position - 1][token_R] * self.scale_in).view(users, beams, -1)
            place_BW = (length_B + position - 1)[:, None].expand(-1, beams)
            hidden_BWh = self._states(
                x_BWh, attention_mask=mask_BWK[:, None], position_ids=place_BW, past_key_values=past, use_cache=True
            )
            return self.scores(position, hidden_BWh.flatten(0, 1), candidates_RC)

        return score


# ---------------------------------------------------------------- encoder-decoder


class Seq2SeqLM(LanguageModel):
    """The history into the encoder, the target out of the decoder."""

    auto = "AutoModelForSeq2SeqLM"
    small: ClassVar[dict[str, Any]] = {
        "model_type": "t5", "d_model": 128, "d_ff": 512, "d_kv": 32, "num_heads": 4, "num_layers": 2,
        "num_decoder_layers": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    targets: Literal["one", "next"] = "one"

    def __init__(self, cfg: LanguageModelOptions, *sizes: Any) -> None:
        super().__init__(cfg, *sizes)
        for stack in self.stacks.values():
            stack.set_attn_implementation(pretrained.shared_keys())  # type: ignore[operator]
        self.start = nn.Parameter(torch.randn(self.width) * STD)

    def _stacks(self, model: Any) -> dict[str, nn.Module]:
        return {"encoder": model.get_encoder(), "decoder": model.get_decoder()}

    def _asked(self, id_BT: Tensor) -> dict[str, Tensor]:
        return super()._asked(id_BT) | {"decoder_input_ids": id_BT}

    def hidden(self, model: Any, id_BT: Tensor) -> Tensor:
        memory_BTh = model.get_encoder()(input_ids=id_BT).last_hidden_state
        found: Tensor = model.get_decoder()(input_ids=id_BT, encoder_hidden_states=memory_BTh).last_hidden_state
        return found

    def begin(self) -> None:
        super().begin()
        if self.cfg.lm_path is not None:
            with torch.no_grad():
                self.start.copy_(self.words[self.lm[pretrained.START]])

    def as_transformers(self) -> Any:
        model = super().as_transformers()
        with torch.no_grad():
            model.get_input_embeddings().weight[self.lm[pretrained.START]] = self.start.cpu()
        return model

    def encode(self, token_BSPh: Tensor, history_BS: Tensor, real_BSP: Tensor | None) -> Spelled:
        """(hidden states [B, T, h], mask [B, T]); only tokens that are there are read."""
        x_BTh, there_BT = packed(*self.read(token_BSPh, self.there(history_BS, real_BSP)))
        return self.stacks["encoder"](inputs_embeds=x_BTh, attention_mask=there_BT).last_hidden_state, there_BT

    def _states(self, x_RTh: Tensor, memory_BTh: Tensor, there_BT: Tensor, **more: Any) -> Tensor:
        found: Tensor = self.stacks["decoder"](
            inputs_embeds=x_RTh * self.scale_in, encoder_hidden_states=memory_BTh,
            encoder_attention_mask=there_BT[:, None, None], **more,
        ).last_hidden_state  # fmt: skip
        return found * self.scale_out

    def forward(
        self, history_UPh: Tensor, batch: Batch, teacher_UPh: Tensor, open_UP: Tensor | None = None,
        real_UP: Tensor | None = None,
    ) -> NetworkOutput:  # fmt: skip
        """Teacher-forced logits [B, V] of each sample's target, position by position; where open_UP says so, of those
        targets only whose token is a choice there.
        """
        real_BSP = None if real_UP is None else real_UP[batch.history_row_BS]
        source = self.encode(rows_of(history_UPh, batch.history_row_BS), batch.history_BS, real_BSP)
        before_BPh = rows_of(teacher_UPh[:, :-1], batch.target_row_B)
        start_B1h = self.start.expand(len(before_BPh), 1, -1)
        hidden_BPh = self._states(torch.cat([start_B1h, before_BPh], 1), *source, use_cache=False)
        return self.spelled(hidden_BPh[:, 0], hidden_BPh.unbind(1), batch.target_row_B, open_UP)

    def scorer(self, tokens: Callable[[Tensor], Tensor], history_BS: Tensor) -> Scorer:
        """The scorer that `beam_search` asks; encoder and source keys run once per user."""
        from transformers import DynamicCache, EncoderDecoderCache

        token_BSP = tokens(history_BS)
        source = self.encode(self.look_up(token_BSP), history_BS, self.real(token_BSP))
        keys = DynamicCache()
        past = EncoderDecoderCache(DynamicCache(), keys)

        def score(
            position: int, token_R: Tensor | None, parent_R: Tensor | None, candidates_RC: Tensor | None = None
        ) -> Tensor:
            nonlocal past
            if token_R is None or parent_R is None:  # another search for the same users may begin
                past = EncoderDecoderCache(DynamicCache(), keys)
                x_R1h = self.start.expand(len(history_BS), 1, -1)
            else:
                past.self_attention_cache.reorder_cache(parent_R)
                x_R1h = self.tables[position - 1][token_R][:, None]
            hidden_R1h = self._states(x_R1h, *source, past_key_values=past, use_cache=True)
            return self.scores(position, hidden_R1h[:, 0], candidates_RC)

        return score
