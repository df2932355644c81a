"""Language models in shards: two processes with a piece each come to the weights of one; what they write is whole."""

import json
from dataclasses import replace
from pathlib import Path

import killed
import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import tiny_overrides, words, write_tiny
from helpers import LM, fails

import main
from compose import build, configure
from data import Shape, Steps, epoch_plan
from readers.layouts import read_dataset
from readers.splits import DataOptions
from serve.loaded import load

SHARDS = {"ACCELERATE_USE_FSDP": "true"}  # what the launcher tells its workers, as the first test shows
CASES = {
    "causal_lm": {"max_grad_norm": 0.05, "gradient_checkpointing": True},
    "seq2seq_lm": {"uncertainty": "frqud_sdud", "lr_sigma": 0.1},
    "adapted": {"method": "two_stage", "recommender": "causal_lm", "lora_rank": 2},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    write_tiny(root / "dataset" / "tiny", n_users=35)
    options = tiny_overrides(root) | {"warmup_steps": 2, "lr_rec": 1e-2, "lr_id": 1e-3, "token_budget": 120}
    data = read_dataset(configure.build(options)[DataOptions])
    return root, options | {"rqvae_path": str(build.train_tokenizer(configure.build(options), data))}, data


def largest(a, b):
    """The largest difference of two states, optimizer's or model's."""
    assert a.keys() == b.keys()
    return max(float((x.double() - b[k].double()).abs().max()) for k, x in a.items())


def test_the_file_makes_the_launcher_ask_for_shards():
    file = Path(main.__file__).with_name("accelerate_fsdp.yaml")
    asked = launch_command_parser().parse_args(["--config_file", str(file), "main.py"])
    assert prepare_multi_gpu_env(_validate_launch_command(asked)[0]).items() >= SHARDS.items()


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("case", CASES)
def test_shards_train_what_one_process_trains(place, case):
    """Joint training and adapters, clipped, in parts whose number differs between the two; killed in the second epoch.
    What is on disk is whole: weights, moments, and what one process makes of them.
    """
    root, options, data = place
    chosen = {"recommender": case} | CASES[case]
    chosen |= LM[chosen["recommender"]]
    if "lora_rank" in chosen:
        pytest.importorskip("peft")
    (root / f"{case}.yaml").write_text(yaml.safe_dump(options | chosen))
    cfg = configure.build(options | chosen)
    if chosen["recommender"] == "seq2seq_lm":
        plan = epoch_plan(data.train, shape := Shape(8, 2, tokens=120, tokens_per_item=4), cfg[DataOptions].seed, 0)
        steps = zip(*(Steps(data.train, plan, replace(shape, rank=rank)) for rank in range(2)), strict=True)
        assert any(len(a) != len(b) for a, b in steps)

    def run(name, processes, **how):
        argv = [f"--config={root / f'{case}.yaml'}", f"--run_name={name}", f"--batch_size={16 // processes}"]
        return killed.train(root, [*argv, "--resume=auto"], processes=processes, **how)

    codes, said = run(f"{case}-one", 1)
    assert codes == [0], said
    codes, said = run(f"{case}-two", 2, environment=SHARDS, kill=[("step", 11)])
    assert codes[0] == -9, said
    codes, said = run(f"{case}-two", 2, environment=SHARDS)
    assert codes == [0, 0] and "resumed at epoch 1" in said[0] and "split over 2 processes" in said[0], said
    one, two = (root / "out" / "tiny" / f"{case}-{name}" for name in ("one", "two"))
    losses = [[json.loads(row)["loss"] for row in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    states = [torch.load(max((f / "last").glob("*.pth")), weights_only=True) for f in (one, two)]
    assert largest(states[0]["model"], states[1]["model"]) < 1e-5
    moments = [s["optimizer"]["state"] for s in states]
    assert moments[0].keys() == moments[1].keys()
    assert max(largest(kept, moments[1][i]) for i, kept in moments[0].items()) < 1e-5
    lists = [load(f / "best_model.pth").recommend([["i3", "i17"], ["i5"]], 10) for f in (one, two)]
    assert [[h.item for h in x] for x in lists[0]] == [[h.item for h in x] for x in lists[1]]
    main.main(["evaluate", "--checkpoint", str(two / "best_model.pth"), "--split", "valid"])


@pytest.mark.parametrize("changes", [{}, {"method": "sasrec"}])
def test_what_cannot_be_dealt_out_is_one_line_before_training(place, capsys, monkeypatch, changes):
    root, options, _ = place
    monkeypatch.setenv("DIGER_SHARDS", "1")  # as `asked` remembers it
    said = fails(capsys, main.main, *words(options | changes | {"run_name": "wrong"}))
    assert "accelerate_fsdp.yaml: only causal_lm and seq2seq_lm can be dealt out" in said
    assert not (root / "out" / "tiny" / "wrong").exists()
