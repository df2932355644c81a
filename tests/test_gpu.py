"""On a GPU what a CPU computes; and the prepared command for one, whose steps a clock ends (that part needs none)."""

import json
import sys

import pytest
import torch
import yaml
from conftest import tiny_at
from helpers import LM

import main
from compose import build, configure, parts
from data import Shape, sample
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs.folder import RunFolder
from scripts import gpu
from utils import Problem


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(options, data) of a tiny data set with its tokenizer."""
    root = tmp_path_factory.mktemp("gpu")
    options = tiny_at(root) | {"uncertainty": "none", "assignment_forward": "history"}
    data = read_dataset(configure.build(options)[DataOptions])
    return options | {"rqvae_path": str(build.train_tokenizer(configure.build(options), data))}, data


@pytest.mark.gpu
@pytest.mark.parametrize("network", parts.NETWORKS)
def test_loss_gradient_and_search_are_those_of_the_cpu(tiny, network):
    options, data = tiny
    cfg = configure.build(options | {"recommender": network} | LM.get(network, {}))
    model = build.build_model(cfg, data).model.eval()
    (part,) = sample(data.train, Shape(32, longest=10, targets=model.targets), 0, 0)
    found = []
    for device in map(torch.device, ("cpu", "cuda")):
        model.to(device).zero_grad()
        batch = part.to(device)
        loss, _ = model(batch)
        loss.backward()
        grads = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
        lists = model.recommend(batch.history_BS, 5)
        found.append((loss.item(), grads, lists.score_BW.cpu(), lists.item_BW.cpu()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-2, abs=1e-6)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-3, atol=1e-3)
    assert (found[0][3] == found[1][3]).float().mean() > 0.9  # equal scores may change places


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["diger", "two_stage", "sasrec", "causal_lm", "seq2seq_lm"])
def test_a_run_in_bf16_ends_with_figures(tiny, tmp_path, name):
    chosen = {"method": "diger", "recommender": name} | LM[name] if name in LM else {"method": name}
    own = {**chosen, "run_name": name, "mixed_precision": "bf16", "output_dir": str(tmp_path)}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny[0] | own))
    main.main([f"--config={path}"])
    assert 0 <= RunFolder(tmp_path / "tiny" / name).results()["ndcg@10"] <= 1


# ---------------------------------------------------------------- scripts/gpu.py


def python(text):
    return [sys.executable, "-c", text]


def test_a_step_that_takes_too_long_is_ended_and_the_others_go_on(tmp_path, monkeypatch):
    """What each leaves is read whatever its end; the files hold all steps."""
    (tmp_path / "b.json").write_text('{"train": {"samples_per_s": {"ours": 6.0, "baseline": 3.0, "ratio": 2.0}}}')
    steps = [
        gpu.Step("slow", [python("import time; time.sleep(60)"), python("print('never')")], 1, lambda: {"epochs": 3}),
        gpu.Step("wrong", [python("import sys; sys.exit(7)")], 20, lambda: json.loads("{")),
        gpu.Step("good", [python("print('said')")], 20, lambda: json.loads((tmp_path / "b.json").read_text())),
    ]
    monkeypatch.setattr(gpu, "steps_of", lambda data, out: steps)
    found = gpu.run(["--dry_run", str(tmp_path)])
    assert found["slow"]["status"] == 124 and found["slow"]["seconds"] < 20 and found["slow"]["epochs"] == 3
    assert found["wrong"]["status"] == 7 and "unread" in found["wrong"]
    assert (tmp_path / "good.log").read_text() == "said\n" and "never" not in (tmp_path / "slow.log").read_text()
    assert json.loads((tmp_path / "gpu.json").read_text())["steps"] == found
    with pytest.raises(Problem, match=r"gpu\.json: is there already"):
        gpu.run(["--dry_run", str(tmp_path)])
    assert "| good | 0 | 0 | train.samples_per_s 6 (2 x) |" in (tmp_path / "gpu.md").read_text()


def test_the_commands_are_those_of_the_presets(tmp_path):
    """What a run has left is read: epochs, their speed, what all would take."""
    names = [step.name for step in gpu.steps_of("DIR", tmp_path)]
    assert names == ["tests", "benchmark", "rq_transformer", "paper", "compiled"]
    for data in ("DIR", None):
        for step in gpu.steps_of(data, tmp_path)[2:4]:
            for _, script, config, *words in step.commands:
                assert script.endswith(("pretrain.py", "main.py"))
                given = configure.parse_overrides([w for w in words if not w.startswith("--config")])
                configure.build(yaml.safe_load(open(config.partition("=")[2])), given)  # noqa: SIM115, PTH123
    assert gpu.of_run(tmp_path) == {"epochs": 0}
    rows = [{"epoch": i, "seconds": 36.0 + i, "samples_per_s": 5.0 + i, "peak_memory_gb": 1.5} for i in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row | {"valid/ndcg@10": 0.1}) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text("epochs: 100\n")
    found = gpu.of_run(tmp_path)
    assert found["epochs"] == 3 and found["samples_per_s"] == 6 and found["valid/ndcg@10"] == 0.1
    assert found["hours_for_all"] == pytest.approx(100 * 37 / 3600) and "test/ndcg@10" not in found


@pytest.mark.parametrize(("argv", "said"), [([], "name the folder"), (["--x"], "name the folder"),
                                            (["nowhere"], "nowhere: holds no folder beauty")])  # fmt: skip
def test_a_wrong_command_is_one_line(argv, said):
    with pytest.raises(Problem, match=said):
        gpu.run(argv)
