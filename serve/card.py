"""A checkpoint as a folder for others, with a model card made of the run's own figures."""

from pathlib import Path
from typing import Any

import yaml

import settings
from compose import parts, restore
from metrics import EvalOptions
from model import GenerativeModel
from readers.splits import DataOptions
from runs.exported import SIDS, folder_of, write_folder
from runs.folder import RunFolder
from sids.files import to_index
from utils import Problem, write_text

PAPER = "https://arxiv.org/abs/2601.19711"


def export(path: str | Path, folder: Path) -> int:
    """Write a checkpoint (a best_model.pth, or such a folder) into a folder that is there; the number of its items."""
    restored = restore.restore(path)
    cfg, model, state = restored
    test = test_figures(path, state)
    config = {**state["config"], **local_paths(cfg)}
    sids = to_index(model.sids) if isinstance(model, GenerativeModel) else None
    write_folder(folder, {**state, "config": config, **({"test": test} if test else {})}, sids)
    if isinstance(model, GenerativeModel):
        model.recommender.export(folder)
    write_text(folder / "README.md", card(restored, test))
    return len(state["items"])


def local_paths(cfg: settings.Config) -> dict[str, Any]:
    """The options that name files and folders of this machine, as if they had not been set."""
    found: dict[str, Any] = {}
    for part in cfg.sections.values():
        fresh = type(part)()
        found |= {k: getattr(fresh, k) for k, f in settings.fields_of(type(part)).items() if f.metadata["path"]}
    return found


def test_figures(path: str | Path, state: dict[str, Any]) -> dict[str, float]:
    """Test figures of a checkpoint: what it says itself, or what stands beside it in the folder of its run."""
    found, names = state.get("test", {}), state.get("valid", {})
    if not isinstance(found, dict) or not isinstance(names, dict):
        return {}
    run = RunFolder(folder_of(path))
    if not found and run.finished and Path(path).is_file():
        try:
            if run.read_best().get("run") == state.get("run") and run.best.samefile(path):
                found = run.results()
        except Problem:  # somebody else's files; the figures are a kindness
            return {}
    return {k: found[k] for k in names if type(found.get(k)) in (int, float)}


def card(restored: restore.Restored, test: dict[str, float]) -> str:
    """README.md of the folder: what it is, how well it ranked, how to use it."""
    cfg, net, state = restored
    data, label = cfg[DataOptions], parts.label(cfg)
    head = yaml.safe_dump({"library_name": "diger", "tags": ["recommendation", "semantic-ids"]})
    lines = ["---", head.strip(), "---", "", f"# {label} on {data.dataset}", ""]
    lines += [f"Recommends {len(state['items'])} items from a user's history of them. Method: {label} "
              f"([DIGER]({PAPER}))." + (f" Semantic IDs of {len(net.sizes)} codes an item; `{SIDS}` has them."
                                        if isinstance(net, GenerativeModel) else ""), ""]  # fmt: skip
    held = state.get("valid")
    valid: dict[str, Any] = held if isinstance(held, dict) else {}
    rows = [(name, valid.get(name), test.get(name)) for name in cfg[EvalOptions].metrics]
    lines += ["| metric | validation | test |", "|---|---|---|"]
    lines += [f"| {name} | {_figure(chosen)} | {_figure(test)} |" for name, chosen, test in rows]
    lines += ["", f"Full ranking of the catalogue, split {data.split}, seed {data.seed}.", ""]
    lines += ["The checkpoint was chosen on validation.", ""]
    lines += ["```python", "from serve.loaded import load  # in a clone of the DIGER repository", ""]
    lines += [f'load("FOLDER").recommend([["{state["items"][0]}"]], k=5)', "```", "", "```bash"]
    lines += ["python main.py recommend --checkpoint FOLDER --history itemA,itemB --k 5"]
    lines += ["python scripts/serve.py FOLDER", "```", "", "Options that differ from their defaults:", "", "```yaml"]
    counted = {k: v for k, v in settings.counting(cfg).items() if k not in local_paths(cfg)}
    lines += [yaml.safe_dump(counted, sort_keys=False, default_flow_style=None).strip(), "```", ""]
    return "\n".join(lines)


def _figure(value: Any) -> str:
    return f"{value:.4f}" if type(value) in (int, float) else "-"
