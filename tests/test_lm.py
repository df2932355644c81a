"""Language models over SIDs beside transformers' own loss, gradient and `generate`; its folders; what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from helpers import LM, SMALL, TINY, N, assert_same_state, fit_of, one_line, some_batch, some_split
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

import main
from compose import build, configure
from data import make_batch
from recommenders import pretrained
from scripts import export
from scripts.bench.lm import Generated
from serve.loaded import load
from utils import Problem

KINDS = {
    "qwen2": {"recommender": "causal_lm", "lm": {"model_type": "qwen2", **SMALL, "num_key_value_heads": 1}},
    "llama": {"recommender": "causal_lm", "lm": {"model_type": "llama", **SMALL, "tie_word_embeddings": True}},
    "gpt2": {"recommender": "causal_lm", "lm": {
        "model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "attn_pdrop": 0, "resid_pdrop": 0,
        "embd_pdrop": 0, "eos_token_id": 1, "bos_token_id": 0}},
    "t5": {"recommender": "seq2seq_lm", "lm": LM["seq2seq_lm"]["lm"] | {"num_layers": 2}},
}  # fmt: skip


def model_of(kind, dtype=torch.float32, **changes):
    """A two-stage model with codes and weights that differ enough to rank by."""
    cfg = configure.build({**TINY, "method": "two_stage", **KINDS[kind], **changes})
    torch.manual_seed(0)
    model = build.empty_model(cfg, N)
    model.set_codes(torch.randint(0, 8, (N, 3)))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.to(dtype).eval()


class Masked(nn.Module):
    """The logits' table of transformers with a mask of what may stand where."""

    def __init__(self, head, mask):
        super().__init__()
        self.head, self.mask = head, mask

    def forward(self, state):
        return self.head(state) + self.mask


def theirs(model, batch):
    """(transformers' loss on the same tokens, its model)."""
    said = Generated(model)
    lm, ids, P = said.model.double(), said.id_NP, len(said.sizes)
    one = batch.target_B[:, None]
    width = batch.history_BS.shape[1] * P
    if lm.config.is_encoder_decoder:
        asked, labels = said.inputs(batch.history_BS), ids[batch.target_B - 1]
        mask = said.head.mask_PV
    else:  # every item behind another is a target
        asked = said.inputs(torch.cat([batch.history_BS, one], 1))
        there = asked["attention_mask"].bool()
        asked["position_ids"] = (there.long().cumsum(1) - 1).clamp(min=0)
        first = there.long().argmax(1)[:, None] + P
        labels = asked["input_ids"].masked_fill(torch.arange(width + P) < first, -100)
        mask = said.head.mask_PV.roll(-1, 0).repeat(width // P + 1, 1)  # a place foretells the next one's token
    lm.set_output_embeddings(Masked(said.head.head, mask))
    return lm(**asked, labels=labels).loss, lm


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_transformers_own(kind):
    """In float64, as far as transformers keeps to it: norms and a causal loss are float32 there."""
    model, batch = model_of(kind, torch.float64), some_batch()
    network = model.recommender
    loss, _ = model(batch)
    loss.backward()
    want, lm = theirs(model, batch)
    want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    for name, stack in network._stacks(lm).items():
        grads = {k: p.grad for k, p in stack.named_parameters()}
        for key, p in network.stacks[name].named_parameters():
            torch.testing.assert_close(p.grad, grads[key], rtol=1e-4, atol=1e-7)
    tables = {id(w): w for w in (lm.get_input_embeddings().weight, lm.lm_head.head.weight)}.values()
    got = torch.cat([table.grad for table in network.tables])
    torch.testing.assert_close(got, sum(w.grad for w in tables)[len(network.words) :], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("beams", [10, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_items_scores_and_order_are_those_of_generate(kind, beams):
    model = model_of(kind, num_beams=beams)
    history_BS = some_batch().history_BS
    token_BWP, score_BW = Generated(model).beams(history_BS, beams)
    found = model.recommend(history_BS, beams)
    assert (found.item_BW > 0).all()
    torch.testing.assert_close(found.score_BW, score_BW, atol=1e-5, rtol=0)
    assert torch.equal(model.sids.token_NP[found.item_BW - 1], token_BWP)


PLACED = {  # key of the places, how many three items of four tokens take
    "gpt2": ("n_positions", 15), "bart": ("max_position_embeddings", 12),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLACED)
def test_no_more_places_are_asked_for_than_are_read(kind):
    key, places = PLACED[kind]
    sizes = KINDS["gpt2"]["lm"] if kind == "gpt2" else {
        "model_type": "bart", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}  # fmt: skip
    network = "causal_lm" if kind == "gpt2" else "seq2seq_lm"
    cfg = configure.build({**TINY, "recommender": network, "max_his_len": 3, "lm": {**sizes, key: places}})
    model = build.empty_model(configure.change(cfg, method="two_stage"), N)
    model.set_codes(torch.randint(0, 8, (N, 3)))
    batch = make_batch(some_split(), np.arange(4), 3)
    assert (batch.history_BS > 0).all(1).any() and model(batch)[0].isfinite()
    assert (model.eval().recommend(batch.history_BS, 10).item_BW > 0).all()
    with pytest.raises(Problem, match=f"{kind} reads {places - 1} tokens at most, a history of 3 items needs {places}"):
        build.network_of(configure.change(cfg, lm={**sizes, key: places - 1}), N, build.vocabulary_of(cfg, N))


# ---------------------------------------------------------------- folders


@pytest.fixture(scope="module", params=LM)
def run(request, ground):
    """A joint run of one epoch with each kind."""
    chosen = {"recommender": request.param, **LM[request.param], "epochs": 1, "run_name": request.param}
    return main.train(configure.build(ground[0] | chosen))


def test_an_exported_folder_is_read_by_us_and_by_transformers(run, tmp_path):
    out = export.run([str(run.best), "--out", str(tmp_path / "out")])
    ours = load(out)
    assert ours.recommend([["i3", "i17"], ["i5"]], 10) == load(run.best).recommend([["i3", "i17"], ["i5"]], 10)
    network = ours.model.recommender
    theirs = getattr(transformers, network.auto).from_pretrained(out / "lm")
    said = Generated(ours.model, theirs)
    history_BS = torch.tensor([[ours.number["i3"], ours.number["i17"]]])
    token_BWP, score_BW = said.beams(history_BS, 10)
    found = ours.model.recommend(history_BS, 10)
    assert torch.equal(ours.model.sids.token_NP[found.item_BW - 1], token_BWP)
    torch.testing.assert_close(found.score_BW, score_BW, atol=1e-5, rtol=0)


def saved(folder, kind):
    """A language model as others publish it: a vocabulary of 40 words, tied tables, a tokenizer of 30 words."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "bought", "next", *"abcdefghijklmnopqrstuvwxyz"])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = Whitespace()
    options = {**KINDS[kind]["lm"], "vocab_size": 40, "tie_word_embeddings": True, "pad_token_id": 0}
    torch.manual_seed(1)
    auto = "AutoModelForSeq2SeqLM" if kind == "t5" else "AutoModelForCausalLM"
    pretrained.untrained(options, auto).save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "rank"), [("llama", 0), ("llama", 2), ("t5", 0)])
def test_a_pre_trained_model_and_a_prompt(ground, tmp_path, kind, rank):
    """Its weights, and the words around a history, are those of the folder; the run needs the folder no more."""
    if rank:
        pytest.importorskip("peft")
    folder = saved(tmp_path / "lm", kind)
    prompt = {"user": "bought {history} next", "assistant": " b"}
    chosen = {"recommender": KINDS[kind]["recommender"], "lm_path": str(folder), "prompt": prompt, "lora_rank": rank}
    place = {"method": "two_stage", "epochs": 1, "run_name": "r", "output_dir": str(tmp_path), "lr_rec": 1e-9}
    run = main.train(configure.build(ground[0] | chosen | place))
    shutil.rmtree(folder)
    ours = load(run.best)
    network, auto = ours.model.recommender, ours.model.recommender.auto
    again = saved(tmp_path / "again", kind)
    theirs = network.as_transformers()
    kept = getattr(transformers, auto).from_pretrained(again)
    for name, p in kept.named_parameters():
        torch.testing.assert_close(theirs.get_parameter(name)[: len(p)], p, atol=1e-6, rtol=0)
    assert network.before.tolist() == [2] and network.behind.tolist() == [3, 5]
    history_BS = torch.tensor([[1, 2], [0, 3]])
    score_BW = Generated(ours.model).beams(history_BS, 10)[1]
    found = ours.model.recommend(history_BS, 10)
    torch.testing.assert_close(found.score_BW, score_BW, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_from_a_folder_goes_on_from_it(ground, tmp_path, monkeypatch, rank):
    """Its states hold what has learned; the rest is the folder's, which must be as it was."""
    if rank:
        pytest.importorskip("peft")
    folder = saved(tmp_path / "lm", "llama")
    chosen = {"recommender": "causal_lm", "lm_path": str(folder), "lora_rank": rank, "method": "two_stage"}
    chosen |= {"save_steps": 2, "epochs": 1, "prompt": {"user": "bought {history} next"}}
    whole, broken = (fit_of(ground, tmp_path / name, **chosen) for name in ("whole", "broken"))
    whole.train()
    step, done = broken.step, []

    def stops(parts):
        done.append(step(parts))
        if len(done) == 5:
            raise KeyboardInterrupt
        return done[-1]

    monkeypatch.setattr(broken, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    held = broken.run.load_state()["model"]
    learned = {k for k in held if k.startswith("recommender.")}
    assert learned == {n for n, p in broken.raw.named_parameters() if p.requires_grad} != set()
    resumed = fit_of(ground, tmp_path / "broken", **chosen, resume="auto")
    resumed.train()
    assert_same_state(resumed, whole)
    assert torch.load(resumed.run.best, weights_only=True)["model"].keys() == resumed.raw.state_dict().keys()
    torch.manual_seed(2)
    pretrained.untrained(pretrained.config_of(folder), "AutoModelForCausalLM").save_pretrained(folder)
    with pytest.raises(Problem, match="was begun with other data or files; resume it with the same data and files"):
        fit_of(ground, tmp_path / "broken", **chosen, resume="auto").train()


def test_adapters_alone_learn_and_are_merged_for_others():
    pytest.importorskip("peft")
    model = model_of("qwen2", lora_rank=2, gradient_checkpointing=True).train()
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learned == {n for n, _ in model.named_parameters() if ".lora_" in n or ".tables." in n} != set()
    model(some_batch())[0].backward()
    grouped = {id(p) for group in model.param_groups() for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.grad is not None}
    history_BS = some_batch().history_BS
    found, score_BW = model.eval().recommend(history_BS, 10), Generated(model).beams(history_BS, 10)[1]
    torch.testing.assert_close(found.score_BW, score_BW, atol=1e-5, rtol=0)


def test_activations_computed_again_change_no_gradient():
    grads = []
    for again in (False, True):
        model = model_of("qwen2", gradient_checkpointing=again).train()
        model(some_batch())[0].backward()
        grads.append([p.grad for p in model.parameters()])
        assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) == again
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


# ---------------------------------------------------------------- what is refused, before anything is trained


def without(*names):
    """A change of a folder's weights that leaves some out."""

    def change(folder):
        file = folder / "model.safetensors"
        held = {k: v for k, v in load_file(file).items() if k not in names}
        assert len(held) < len(load_file(file))
        save_file(held, file, metadata={"format": "pt"})

    return change


def pickled(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def renamed(folder):
    held = load_file(folder / "model.safetensors")
    save_file({f"other.{k}": v for k, v in held.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def from_logits(folder):
    """T5 whose table of words is missing, though its logits' table is there."""
    held = load_file(folder / "model.safetensors")
    held["lm_head.weight"] = held.pop("shared.weight")
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def narrow(folder):
    """More tokens than the table of words has rows."""
    file = folder / "tokenizer.json"
    words = json.loads(file.read_text())
    words["model"]["vocab"] |= {f"word{i}": 30 + i for i in range(11)}
    file.write_text(json.dumps(words))


def no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def torn(folder):
    (folder / "model.safetensors").write_bytes(b"x" * 99)


def as_text(folder):
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", without("model.norm.weight"), r"has no weights called model\.norm\.weight; it is no checkpoint for"),
        ("llama", without("model.embed_tokens.weight"), r"has no weights called (lm_head|model\.embed_tokens)\.weight"),
        ("t5", from_logits, r"has no weights called shared\.weight"),
        ("llama", renamed, r"has no weights called .* and \d+ more"),
        ("llama", pickled, r"has no \*\.safetensors; pickled weights are not read"),
        ("llama", torn, "cannot be loaded as AutoModel"),
        ("llama", lambda folder: (folder / "config.json").unlink(), r"config\.json: no such file"),
        ("llama", as_text, r"config\.json: not readable as JSON"),
        ("llama", narrow, r"prompt: the tokenizer of .* has 41 tokens, its model 40 embeddings"),
        ("llama", no_tokenizer, "prompt: .* has no usable tokenizer"),
        ("gpt2", None, "lm: gpt2 is no Seq2SeqLM"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(tmp_path, kind, change, message):
    folder = saved(tmp_path / "lm", kind)
    if change is not None:
        change(folder)
    network = "seq2seq_lm" if kind in ("t5", "gpt2") else "causal_lm"
    with pytest.raises(Problem, match=message) as problem:
        cfg = configure.build({
            **TINY, "recommender": network, "lm_path": str(folder), "prompt": {"user": "{history} next"},
        })  # fmt: skip
        build.network_of(cfg, N, build.vocabulary_of(cfg, N)).begin()
    one_line(problem)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lm": {"model_type": "qwen3000"}}, r"no model_type 'qwen3000'; did you mean 'qwen\w+'\?"),
        ({"lm": {"model_type": "qwen2", "hidden_sise": 8}}, "qwen2 has no 'hidden_sise'; did you mean 'hidden_size'"),
        ({"lm": {"hidden_size": 8}}, "lm: needs a model_type"),
        ({"lm": "qwen2"}, "lm: expected a mapping"),
        ({"lm": {"model_type": "gpt2", "n_embd": 10, "n_head": 4}}, "width of 10, not divisible by 4 heads; 12 would"),
        ({"lm": {"model_type": "qwen2", **SMALL, "num_key_value_heads": 3}}, "not divisible by num_key_value_heads 3"),
        ({"lm": {"model_type": "qwen2", **SMALL, "hidden_size": "wide"}}, "lm: "),
        ({"lm": {"model_type": "t5"}}, "lm: t5 is no CausalLM"),
        ({"lm": {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_positions": 64}}, "reads 64 tokens at most"),
        ({"lm_path": "./nowhere"}, r"lm_path: \./nowhere is neither a folder nor a name on the hub"),
        ({"lm_path": "owner/name"}, "lm_path: owner/name is no folder here; .* name its --lm_revision=COMMIT"),
        ({"lm_path": "owner/name", "lm_revision": "abc"}, "lm_path: owner/name: not to be had from the hub"),
        ({"prompt": {"user": "no place"}}, r"prompt: \{history\} must stand once in user"),
        ({"prompt": {"system": "be brief"}}, "prompt: needs the key user"),
        ({"prompt": {"human": "{history}"}}, "prompt: has no 'human'; there are system, user and assistant"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options, message, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(Problem, match=message) as problem:
        cfg = configure.build({**TINY, "recommender": "causal_lm", **options})
        build.network_of(cfg, N, build.vocabulary_of(cfg, N))
    one_line(problem)
