"""A step of pre-training that processes share out is the step of one."""

import killed
import pytest
import torch
from accelerate import PartialState
from conftest import tiny_overrides, write_tiny
from killed import Process, free_port, join_group

from compose import build, configure
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs import guard
from scripts import pretrain
from sids import distributed, fit
from sids.checkpoint import PretrainOptions
from sids.fit import Pretrainer
from sids.neighbour_recall import Queries, hit_figures, neighbours
from sids.tokenizer import Source
from utils import Problem, Stopped, read_checkpoint, read_json

CASES = {
    "in turn": {"tokenizer": "contrastive"},
    "pair by pair": {"tokenizer": "contrastive", "task": "contrastive", "rqvae_batch_size": 1, "pair_min_count": 2},
    "sum": {"tokenizer": "contrastive", "mixing": "sum"},
    "averages": {"tokenizer": "contrastive", "codebook_learning": "ema", "dead_code_ratio": 0.5},
    "plain": {
        "tokenizer": "rqvae",
        "dead_code_ratio": 0.5,
        "rqvae_assignment": "sinkhorn",
        "sk_epsilons": [0.1, 0.1, 0.1],
    },
}


def options_of(root, **changes):
    return tiny_overrides(root) | {
        "method": "two_stage", "epochs": 1, "rqvae_batch_size": 15,
        "rqvae_assignment": "argmin", **changes,
    }  # fmt: skip


def three_epochs(root, rank, processes, port):
    """In float64, from the same start; state and figures of each case to a file a rank."""
    torch.set_num_threads(1)
    join_group(rank, processes, port)
    if processes > 1:
        PartialState(cpu=True)
    for case, changes in CASES.items():
        cfg = configure.build(options_of(root, **changes))
        source = Source.of(read_dataset(cfg[DataOptions]))
        torch.manual_seed(0)
        recipe = build.recipe_of(cfg)
        model = recipe.kind(recipe.codes, source.content_ND.shape[1])
        loop = Pretrainer(recipe, recipe.loop, model, source, root / "never.pth")
        model.begin(source, cfg[PretrainOptions].rqvae_batch_size, 0, fresh=True)
        distributed.agree(model.double())
        figures = [loop._epoch(epoch) for epoch in range(3)]
        torch.save({"state": model.state_dict(), "figures": figures}, root / f"{case}-{processes}-{rank}.pt")


@pytest.mark.dist
def test_processes_take_the_steps_of_one(tmp_path):
    """Three against one, batches of 40 items and of all pairs that end unevenly, codes that die and move: parameters,
    averages and the log's figures; ranks alike to the bit.
    """
    write_tiny(tmp_path / "dataset" / "tiny")
    workers = []
    for processes in (1, 3):
        port = free_port()
        workers += [Process(target=three_epochs, args=(tmp_path, r, processes, port)) for r in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    for case in CASES:
        whole = torch.load(tmp_path / f"{case}-1-0.pt", weights_only=True)
        ranks = [torch.load(tmp_path / f"{case}-3-{r}.pt", weights_only=True) for r in range(3)]
        for key, value in whole["state"].items():
            first = ranks[0]["state"][key]
            assert all(torch.equal(first, other["state"][key]) for other in ranks[1:]), (case, key)
            apart = float((first.double() - value.double()).abs().max())
            assert apart < 1e-9, (case, key, apart)
        for got, want in zip(ranks[-1]["figures"], whole["figures"], strict=True):
            assert got.pop("accuracy", 0) == pytest.approx(want.pop("accuracy", 0), abs=0.02), case  # has ties
            assert got == pytest.approx(want, rel=1e-9), case


@pytest.mark.dist
def test_the_command_with_two_processes(tmp_path):
    """One of them writes and speaks."""
    write_tiny(tmp_path / "dataset" / "tiny")
    options = options_of(tmp_path, tokenizer="contrastive", rqvae_epochs=2, rqvae_eval_step=1)
    codes, said = killed.train(tmp_path, [f"--{k}={v}" for k, v in options.items()], processes=2, run=pretrain.run)
    assert codes == [0, 0], said
    assert said[0].count("tokenizer epoch 2 ") == 1 and said[0].count("\ntokenizer: /") == 1 and not said[1]
    cfg = configure.build(options)
    path = build.tokenizer_path(cfg, read_dataset(cfg[DataOptions]))
    assert read_checkpoint(path)["epoch"] == read_json(path.with_name("report.json"))["epoch"]
    assert path.with_name("sids.json").is_file() and not path.with_name("last.pth").exists()


def trained(options, rank, port, fault, said):
    """One of two processes that make a tokenizer, with a fault; how it ended goes to a file."""
    torch.set_num_threads(1)
    join_group(rank, 2, port)
    PartialState(cpu=True)
    if fault == "write" and rank == 0:
        fit.write_checkpoint = unwritable
    if fault == "stop" and rank == 1:  # the launcher's signal has reached this one alone so far
        calls = iter([0, 15])
        guard.asked = lambda: next(calls)
    cfg = configure.build(options)
    try:
        build.train_tokenizer(cfg, read_dataset(cfg[DataOptions]))
        end = "done"
    except (Problem, Stopped, SystemExit) as e:
        end = repr(e)
    said.write_text(end)


def unwritable(path, state):
    raise Problem("full")


def both(tmp_path, options, fault=None):
    port, said = free_port(), [tmp_path / "said-0", tmp_path / "said-1"]
    workers = [Process(target=trained, args=(options, r, port, fault, said[r])) for r in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    return [path.read_text() for path in said]


@pytest.mark.dist
def test_stopped_and_resumed_by_two_processes(tmp_path):
    """A signal that reached one stops both after the same epoch; what goes on ends with the same bits. What the first
    cannot write, it says, and the other ends with it.
    """
    write_tiny(tmp_path / "dataset" / "tiny")
    options = options_of(tmp_path, tokenizer="contrastive", rqvae_epochs=4, rqvae_eval_step=3)
    cfg = configure.build(options)
    path = build.tokenizer_path(cfg, read_dataset(cfg[DataOptions]))
    assert both(tmp_path, options) == ["done", "done"]
    whole = read_checkpoint(path)["state_dict"]
    for file in path.parent.iterdir():
        file.unlink()
    assert both(tmp_path, options, "write") == ["Problem('full')", "SystemExit(2)"]
    assert both(tmp_path, options, "stop") == ["Stopped(15)", "Stopped(15)"]
    assert read_checkpoint(path.with_name("last.pth"))["epoch"] == 1 and not path.exists()
    assert both(tmp_path, options) == ["done", "done"]
    again = read_checkpoint(path)["state_dict"]
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_what_is_fitted_at_once_is_not_shared_out(tmp_path, monkeypatch):
    write_tiny(tmp_path / "dataset" / "tiny")
    cfg = configure.build(options_of(tmp_path, tokenizer="rq_kmeans"))
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    with pytest.raises(Problem, match="rq_kmeans is fitted by one process; start the command without a launcher"):
        build.train_tokenizer(cfg, read_dataset(cfg[DataOptions]))


def hit_rates(path, rank, processes, port):
    """Neighbours and hit rates of made-up items, to a file a rank."""
    torch.set_num_threads(1)
    join_group(rank, processes, port)
    if processes > 1:
        PartialState(cpu=True)
    x_ND = torch.randn(33, 4, generator=torch.Generator().manual_seed(0))
    queries = Queries.of([[0, 5], [7], [32, 3, 9]], [[4], [30], [1, 2]])
    near = neighbours(x_ND, 7)
    torch.save([*map(torch.from_numpy, near), hit_figures(x_ND, queries)], path / f"{processes}-{rank}.pt")
    if processes > 1:
        PartialState().destroy_process_group()


@pytest.mark.dist
def test_neighbours_are_shared_out(tmp_path):
    """33 items over two processes: both have what one has."""
    ranks = [(tmp_path, 0, 1, 0), *((tmp_path, rank, 2, port) for port in [free_port()] for rank in range(2))]
    children = [Process(target=hit_rates, args=args) for args in ranks]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for found in two:
        assert all(map(torch.equal, found[:3], one[:3])) and found[3] == one[3]
