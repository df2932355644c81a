"""A checkpoint as a folder of safetensors and JSON, in the hub's own way."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import main
import scripts.add_items
from compose import restore
from scripts import export
from serve.hub import HubModel
from serve.loaded import load
from sids.files import read_index
from utils import Problem, fingerprint, read_checkpoint

HISTORIES = [["i3", "i17"], ["i5"] * 300, ["i39"]]


@pytest.fixture(scope="module", params=["frqud", "two_stage", "sasrec", "own_tokens"])
def pair(request, trained, tmp_path_factory):
    """(a finished run, the folder that was made of its best model)."""
    run = trained[2][request.param]
    return run, export.run([str(run.best), "--out", str(tmp_path_factory.mktemp("export") / "out")])


def test_the_folder_recommends_the_same_bit_for_bit(pair):
    run, out = pair
    assert load(out).recommend(HISTORIES, 10) == load(run.best).recommend(HISTORIES, 10)
    was, now = read_checkpoint(run.best), restore.restore(out).state
    assert fingerprint(was["model"]) == fingerprint(now["model"])
    same = ("items", "titles", "split", "epoch", "valid", "format", "run")
    assert all(was[k] == now[k] for k in same) and ("tokenizer" in was) == ("tokenizer" in now)


def test_others_can_read_it(pair, trained):
    run, out = pair
    files = {p.name for p in out.iterdir()}
    assert files == {"model.safetensors", "config.json", "items.jsonl", "README.md"} | (
        {"sids.index.json"} if (run.path / "tiny.index.json").exists() else set()
    )
    if "sids.index.json" in files:
        want = read_index(run.path / "tiny.index.json")
        assert torch.equal(read_index(out / "sids.index.json").code_NT, want.code_NT)
    assert all(str(trained[0]["data_path"]).split("dataset")[0] not in (out / f).read_text(errors="replace")
               for f in files)  # no path of this machine  # fmt: skip
    card = (out / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "diger" and " on tiny\n" in card
    assert (
        f"| recall@5 | {read_checkpoint(run.best)['valid']['recall@5']:.4f} | {run.results()['recall@5']:.4f} |" in card
    )


def test_evaluate_and_recommend_take_the_folder(pair, trained, capsys):
    run, out = pair
    data = f"--data_path={trained[0]['data_path']}"
    main.main(["evaluate", "--checkpoint", str(out), data])
    assert f"test/ndcg@5 {run.results()['ndcg@5']:.6g}\n" in capsys.readouterr().out
    for path in (out, run.best):
        main.main(["recommend", "--checkpoint", str(path), "--history", "i3,i17"])
    both = capsys.readouterr().out.splitlines()
    assert both[: len(both) // 2] == both[len(both) // 2 :]
    (out / "test_looks.json").unlink()


def test_a_folder_made_of_a_folder_is_the_same(pair, tmp_path):
    _, out = pair
    again = export.run([str(out), "--out", str(tmp_path / "again")])
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}


def test_new_items_are_added_to_a_folder(trained, tmp_path):
    out = export.run([str(trained[2]["two_stage"].best), "--out", str(tmp_path / "out")])
    (tmp_path / "new.jsonl").write_text('{"item_id": "new"}\n')
    np.save(tmp_path / "new.npy", np.ones((1, 12), np.float32))
    paths = {"checkpoint": out, "items": tmp_path / "new.jsonl", "embeddings": tmp_path / "new.npy"}
    made = scripts.add_items.run([f"--{k}={v}" for k, v in (paths | {"output": tmp_path / "x.pth"}).items()])
    assert load(made).items[-1] == "new"


# ---------------------------------------------------------------- the hub's way


def test_the_hubs_way_there_and_back(trained, tmp_path, monkeypatch):
    """No hub is reached: what the client would upload is kept here, and fetched from here."""
    kept = {}

    def upload(self, *, repo_id, folder_path, **more):
        kept[repo_id] = shutil.copytree(folder_path, tmp_path / "hub")
        return "https://hub/commit"

    asked = {}

    def create(self, repo_id, **more):
        asked.update(more)
        return SimpleNamespace(repo_id=repo_id)

    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.create_repo", create)
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.upload_folder", upload)
    run = trained[2]["two_stage"]
    out = export.run([str(run.best), "--out", str(tmp_path / "out"), "--push", "me/tiny"])
    assert asked["private"] is True
    assert {p.name for p in kept["me/tiny"].iterdir()} == {p.name for p in out.iterdir()}
    fetched = {}

    def fetch(model_id, allow_patterns, **more):
        fetched.update(more, patterns=allow_patterns)
        return str(kept[model_id])

    monkeypatch.setattr("serve.hub.snapshot_download", fetch)
    one_file = lambda repo_id, filename, **more: str(kept[repo_id] / filename)  # noqa: E731
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", one_file)
    model = HubModel.from_pretrained("me/tiny", revision="main")
    assert model.recommend(HISTORIES, k=5) == load(run.best).recommend(HISTORIES, 5)
    assert fetched["revision"] == "main" and "*.py" not in fetched["patterns"]
    assert HubModel.from_pretrained(out).loaded.items == model.loaded.items


def test_what_cannot_be_uploaded_is_one_line(trained, tmp_path, monkeypatch):
    def refuse(*args, **more):
        raise OSError("401 Unauthorized")

    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.create_repo", refuse)
    with pytest.raises(Problem, match=r"'me/tiny' was not uploaded .*401 Unauthorized.*hf auth login"):
        export.run([str(trained[2]["sasrec"].best), "--out", str(tmp_path / "out"), "--push", "me/tiny"])
    assert (tmp_path / "out" / "model.safetensors").is_file()  # what was made stays


# ---------------------------------------------------------------- damage


def tensors(change):
    def damage(folder):
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors")

    return damage


def plain(change):
    def damage(folder):
        said = json.loads((folder / "config.json").read_text())
        change(said)
        (folder / "config.json").write_text(json.dumps(said))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no such file; the folder is no exported checkpoint"),
        (lambda f: (f / "config.json").write_text("[]"), "holds no options and state of a checkpoint"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: no such file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "not readable as safetensors"),
        (lambda f: (f / "items.jsonl").write_text('{"item_id": "a"}\n'), "line 1: no item_id and title"),
        (lambda f: (f / "items.jsonl").write_text('{"item_id": "a", "title": ""}\n'), "40 items, its list of ids 1"),
        (tensors(lambda t: t.update(code=torch.zeros(1))), "code is of neither model nor tokenizer"),
        (tensors(lambda t: t.pop("model.end_N")), "does not fit its configuration"),
        (tensors(lambda t: t["model.code_NT"].fill_(99)), "the SID of item 1 is out of range"),
        (tensors(lambda t: t["model.recommender.shared.weight"].fill_(float("nan"))
                 if "model.recommender.shared.weight" in t
                 else next(v for v in t.values() if v.is_floating_point()).fill_(float("nan"))), "NaN or infinity"),
        (plain(lambda s: s["options"].update(d_model=8, num_heads=1)), "does not fit its configuration"),
        (plain(lambda s: s["options"].update(zzz=8)), "unknown option 'zzz'"),
        (plain(lambda s: s["state"].update(model=[], tokenizer=3)), None),  # what a tensor file says wins
    ],
)  # fmt: skip
def test_a_damaged_folder_is_one_line(trained, tmp_path, damage, message):
    out = export.run([str(trained[2]["two_stage"].best), "--out", str(tmp_path / "out")])
    damage(out)
    if message is None:
        assert load(out).items
        return
    with pytest.raises(Problem, match=message):
        load(out)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out", "x"], "name one checkpoint and --out DIR"),
        (["BEST"], "name one checkpoint and --out DIR"),
        (["BEST", "--out", "HERE"], "is there already; choose another name"),
        (["BEST", "--out", "HERE/no/where"], "is not there; make it first"),
        (["BEST", "--out", "HERE/x", "--pull=1"], "unknown option 'pull'"),
        (["HERE/nothing.pth", "--out", "HERE/x"], "no such checkpoint"),
    ],
)
def test_wrong_words(trained, tmp_path, argv, message):
    best = str(trained[2]["sasrec"].best)
    with pytest.raises(Problem, match=message):
        export.run([w.replace("BEST", best).replace("HERE", str(tmp_path)) for w in argv])
    assert list(tmp_path.iterdir()) == []
