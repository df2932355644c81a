"""Language models: our search beside `generate` with a prefix constraint, on the same weights, users and beams; what
bf16, recomputed activations and LoRA change in training.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from compose import build, configure
from data import make_batch
from model import GenerativeModel
from readers.dataset import Dataset
from scripts.bench.common import Figures, Job, device, figure, interleave, peak_memory_of, seconds
from scripts.bench.plain import NestedTrie
from scripts.bench.recommender import changed
from scripts.bench.search import OurSearch
from scripts.bench.train import OurSteps, widest_step
from sids.table import SidVocabulary
from trainer import TrainOptions

NETWORKS = ("causal_lm", "seq2seq_lm")
WIDE = {
    "model_type": "qwen2", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip
HALF_BILLION: dict[str, Any] = {  # Qwen2.5-0.5B's sizes
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2,
}  # fmt: skip
SAVING: dict[str, dict[str, Any]] = {
    "bf16": {"mixed_precision": "bf16"}, "recomputed": {"gradient_checkpointing": True},
    **({"lora": {"lora_rank": 8}} if find_spec("peft") else {}),
}  # fmt: skip


TWIN = {"encoder_layers": 2, "decoder_layers": 2, "d_model": 128, "d_ff": 512, "d_kv": 32, "num_heads": 4}


def measure(job: Job) -> Figures:
    """Of training, beside float32 with all saved: samples/s and peak memory of 4 layers of width 256, and what a token
    of a model of half a billion weights leaves for the backward pass, in MB. Of our T5 beside transformers' samples/s.
    Of searches users/s.
    """
    found = Figures()
    jobs = {k: changed(job, recommender="causal_lm", lm=WIDE, **v) for k, v in {"plain": {}, **SAVING}.items()}
    memory = {k: peak_memory_of(widest_step, each) for k, each in jobs.items()}  # while this process holds little
    kept = {k: saved(changed(job, **SAVING.get(k, {}))) for k in jobs}
    data = job.data()
    jobs["seq2seq_lm"] = changed(job, recommender="seq2seq_lm", lm=None)
    jobs["t5"] = changed(job, recommender="t5", **TWIN)
    steps = {k: OurSteps(each, data) for k, each in jobs.items()}
    for side in steps.values():
        side.warm_up()
    speed = interleave(job.rounds, {k: side.samples_per_s for k, side in steps.items()})
    for k in SAVING:
        found[f"{k}_samples_per_s"] = figure(speed[k], speed["plain"])
        found[f"{k}_peak_memory_gb"] = figure(memory[k], memory["plain"])
        found[f"{k}_mb_a_token_of_0.5b"] = figure(kept[k], kept["plain"])
    found["t5_samples_per_s"] = figure(speed["t5"], speed["seq2seq_lm"])
    return found | searches(job, data)


def saved(job: Job) -> float:
    """MB that a further token leaves behind for the backward pass of half a billion weights, by layers of its sizes."""
    cfg, layers = job.cfg, HALF_BILLION["num_hidden_layers"]
    lm = {**HALF_BILLION, "num_hidden_layers": 2}
    cfg = configure.change(cfg, method="two_stage", recommender="causal_lm", lm=lm)
    network: Any = build.network_of(cfg, 1, SidVocabulary((256, 256, 256), 256)).train()
    bf16 = cfg[TrainOptions].mixed_precision == "bf16"

    def kept(tokens: int) -> int:
        seen: dict[int, int] = {}

        def note(x: Tensor) -> Tensor:
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        x_BTh = torch.randn(1, tokens, network.width, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x), torch.autocast("cpu", enabled=bf16):
            state_BTh = network.stacks["body"](inputs_embeds=x_BTh, use_cache=False).last_hidden_state
        assert state_BTh.requires_grad  # what was saved is there until here
        return sum(seen.values())

    return (kept(256) - kept(128)) / 128 / 1e6 * layers / 2


def searches(job: Job, data: Dataset) -> Figures:
    """users/s per kind and number of beams, random weights of the usual sizes."""
    found = Figures()
    for name in NETWORKS:
        ours = OurSearch(changed(job, recommender=name, lm=None), data)
        theirs = Generated(ours.model)
        for width in job.beams:
            sides = {"ours": ours.model.recommend, "generate": theirs.beams}
            speed = interleave(job.rounds, {k: partial(users_per_s, ours, side, width) for k, side in sides.items()})
            found[f"{name}_users_per_s_{width}_beams"] = figure(speed["ours"], speed["generate"])
    return found


def users_per_s(ours: OurSearch, side: Callable[[Tensor, int], Any], width: int, turn: int) -> float:
    """Two batches of the ranking's plan, of rather short and rather long histories."""
    some = ours.rows(width, turn)
    batches = [make_batch(ours.split, some[len(some) * i // 4], ours.longest).history_BS.to(device()) for i in (1, 3)]
    return sum(map(len, batches)) / seconds(lambda: [side(history_BS, width) for history_BS in batches])


class ByPosition(nn.Module):
    """A logits' table of transformers where only the codes of the position at hand have probability."""

    def __init__(self, head: nn.Module, mask_PV: Tensor) -> None:
        super().__init__()
        self.head, self.mask_PV, self.position = head, mask_PV, 0

    @property
    def weight(self) -> Any:
        return self.head.weight

    def forward(self, state_RTh: Tensor) -> Tensor:
        self.position += 1
        logits: Tensor = self.head(state_RTh) + self.mask_PV[self.position - 1]
        return logits


class Generated:
    """The same network as a model of transformers, asked as its documentation says."""

    def __init__(self, ours: GenerativeModel, theirs: Any = None) -> None:
        """theirs: the model of transformers, where it is there already."""
        network: Any = ours.recommender
        self.network, self.model = network, (theirs or network.as_transformers()).to(device())
        self.sizes, begin = network.vocabulary, len(network.words)
        self.offset_P = torch.tensor([begin, *self.sizes]).cumsum(0)
        mask_PV = torch.full((len(self.sizes), int(self.offset_P[-1])), -torch.inf)
        for position, (a, b) in enumerate(zip(self.offset_P[:-1], self.offset_P[1:], strict=True)):
            mask_PV[position, a:b] = 0
        self.head = ByPosition(self.model.get_output_embeddings(), mask_PV.to(device()))
        self.model.set_output_embeddings(self.head)
        self.id_NP = ours.sids.token_NP.to(device()) + self.offset_P[:-1].to(device())
        self.trie = NestedTrie(self.id_NP.cpu().numpy())

    def inputs(self, history_BS: Tensor) -> dict[str, Tensor]:
        """Histories as token ids between the words of a prompt, what is there at the right end, 0 before it."""
        there_BS = history_BS > 0
        id_BT = self.id_NP[(history_BS - 1).clamp(min=0)].flatten(1)
        mask_BT = there_BS.repeat_interleave(len(self.sizes), 1)
        prompt = [id_BT.new_zeros(0) if ids is None else ids for ids in (self.network.before, self.network.behind)]
        words = [ids.expand(len(history_BS), -1) for ids in prompt]
        id_BT = torch.cat([words[0], id_BT * mask_BT, words[1]], 1)
        mask_BT = torch.cat([torch.ones_like(words[0]), mask_BT.long(), torch.ones_like(words[1])], 1)
        order_BT = mask_BT.argsort(dim=1, stable=True)
        return {"input_ids": id_BT.gather(1, order_BT), "attention_mask": mask_BT.gather(1, order_BT)}

    @torch.inference_mode()
    def beams(self, history_BS: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """(tokens [B, W, P], log-probabilities [B, W]), best first."""
        asked = self.inputs(history_BS)
        before = 1 if self.model.config.is_encoder_decoder else asked["input_ids"].shape[1]
        self.head.position = 0
        out = self.model.generate(
            **asked, num_beams=width, num_return_sequences=width, max_new_tokens=len(self.sizes), do_sample=False,
            length_penalty=0.0, prefix_allowed_tokens_fn=lambda _, ids: self.trie.allowed(0, ids[before - 1 :]),
            return_dict_in_generate=True, output_scores=True, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        token_BWP = out.sequences[:, before:].unflatten(0, (len(history_BS), width))
        return token_BWP - self.offset_P[:-1].to(device()), out.sequences_scores.view(len(history_BS), width)
