"""A trained model in the Hugging Face Hub's own way: save_pretrained, push_to_hub, from_pretrained, with a model card.

HubModel("myckpt/.../best_model.pth").push_to_hub("OWNER/NAME", private=True)
HubModel.from_pretrained("OWNER/NAME").recommend([["i3", "i17"]], k=5)
"""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download

import settings
from compose import parts, restore
from metrics import EvalOptions
from model import GenerativeModel
from readers.splits import DataOptions
from recommenders.protocol import Recommendation
from runs.exported import CONFIG, ITEMS, SIDS, WEIGHTS, folder_of, write_folder
from runs.folder import RunFolder
from serve.loaded import loaded_of
from sids.files import to_index
from utils import Problem

PAPER = "https://arxiv.org/abs/2601.19711"


class HubModel(ModelHubMixin, library_name="diger", tags=["recommendation", "semantic-ids"], paper_url=PAPER):
    """A trained model and all that its folder holds."""

    def __init__(self, path: str) -> None:
        """path: a best_model.pth, or an exported folder."""
        self.restored = restore.restore(path)
        self.loaded = loaded_of(self.restored, path)
        self.test = test_figures(path, self.restored.state)

    def recommend(self, histories: list[list[str]], k: int = 10, **lists: Any) -> list[list[Recommendation]]:
        """As `Loaded.recommend`."""
        return self.loaded.recommend(histories, k, **lists)

    def _save_pretrained(self, save_directory: Path) -> None:
        cfg, model, state = self.restored
        config = {**state["config"], **local_paths(cfg)}
        sids = to_index(model.sids) if isinstance(model, GenerativeModel) else None
        write_folder(save_directory, {**state, "config": config, **({"test": self.test} if self.test else {})}, sids)
        if isinstance(model, GenerativeModel):
            model.recommender.export(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **of_hub: Any) -> "HubModel":
        """A folder here, or a repository; only the files that are read are fetched."""
        if Path(model_id).is_dir():
            return cls(model_id)
        names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        asked = {k: of_hub[k] for k in names if k in of_hub}
        return cls(snapshot_download(model_id, allow_patterns=[WEIGHTS, CONFIG, ITEMS, SIDS], **asked))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that `save_pretrained` and `push_to_hub` write, from the run's own figures."""
        return ModelCard(card(self))


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


def card(model: HubModel) -> str:
    """README.md of the folder: what it is, how well it ranked, how to use it."""
    cfg, net, state = model.restored
    data, label = cfg[DataOptions], parts.label(cfg)
    info = model._hub_mixin_info.model_card_data
    head = yaml.safe_dump({"library_name": info.library_name, "tags": info.tags})
    lines = ["---", head.strip(), "---", "", f"# {label} on {data.dataset}", ""]
    lines += [f"Recommends {len(state['items'])} items from a user's history of them. Method: {label} "
              f"([DIGER]({PAPER}))." + (f" Semantic IDs of {len(net.sizes)} codes an item; `{SIDS}` has them."
                                        if isinstance(net, GenerativeModel) else ""), ""]  # fmt: skip
    held = state.get("valid")
    valid: dict[str, Any] = held if isinstance(held, dict) else {}
    rows = [(name, valid.get(name), model.test.get(name)) for name in cfg[EvalOptions].metrics]
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
