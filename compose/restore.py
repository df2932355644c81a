"""The model of a checkpoint, as it was trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import settings
from compose.build import check_lists, empty_model, empty_tokenizer
from compose.configure import build, parse_overrides
from compose.parts import ITEM_MODELS, MethodOptions
from recommenders.base import Model
from runs.exported import check_checkpoint, read_state
from settings import Config
from sids.behaviour import side_width
from sids.tokenizer import CodeOptions
from utils import Problem, check_weights, load_weights, one_line, shortened


class Restored(NamedTuple):
    cfg: Config
    model: Model
    state: dict[str, Any]  # the whole checkpoint


def restore(path: str | Path, overrides: Sequence[str] = ()) -> Restored:
    """The model of a `best_model.pth`, or of an exported folder, as it was trained; overrides: options that may differ
    from then.
    """
    state = read_state(path)
    check_checkpoint(path, state)
    saved = state["config"]
    try:
        trained = build(saved)
    except Problem as e:
        raise Problem(f"{path}: holds a wrong configuration: {e}") from None
    given = parse_overrides(overrides)
    cfg = build({**trained.aside, **settings.flat(trained)}, given)
    for key, before in settings.sizeless(trained).items():
        if settings.sizeless(cfg).get(key) != before:
            raise Problem(f"{key}: {path} was trained with {before!r}, which cannot be changed now")
    try:
        n_items, n_input = sizes_of(cfg, state["model"])
        if n_items != len(state["items"]):
            raise Problem(
                f"{path}: its model has {n_items} items, its list of ids {len(state['items'])}; use another "
                "checkpoint"
            )
        check_lists(cfg, n_items)
        model = empty_model(cfg, n_items, n_input, state["model"].get("code_NT"))
        load_weights(model, state["model"])
    except (RuntimeError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise Problem(f"{path}: does not fit its configuration ({one_line(e)}); use another checkpoint") from None
    check_weights(path, model.state_dict())
    return Restored(cfg, model.eval(), state)


def carried_tokenizer(path: str | Path, restored: Restored, width: int, source: str = "content embeddings") -> Any:
    """The tokenizer that a checkpoint carries, a joint model's own or the one behind its SIDs, or None.

    Problem where it was made for embeddings of another width than those of the source.
    """
    cfg, model, state = restored
    if (own := getattr(model, "tokenizer", None)) is not None:
        if (was := sizes_of(cfg, state["model"])[1]) != width:
            raise Problem(f"{source}: are of width {width}, the tokenizer's were of width {was}; use that encoder")
        return own
    if not isinstance(state.get("tokenizer"), dict):
        return None
    tokenizer = empty_tokenizer(cfg, width)
    try:
        tokenizer.load_state_dict(state["tokenizer"])
    except (RuntimeError, KeyError, TypeError) as e:
        reason = shortened(" ".join(str(e).split()))
        raise Problem(f"{path}: its tokenizer does not take embeddings of width {width} ({reason})") from None
    return tokenizer.eval()


def sizes_of(cfg: Config, model: dict[str, Any]) -> tuple[int, int]:
    """(items, width of the content embeddings) of a saved model; 0 where it holds none."""
    if cfg[MethodOptions].method in ITEM_MODELS:
        return len(model["encoder.items.weight"]) - ITEM_MODELS[cfg[MethodOptions].method].extra_rows, 0
    first = model.get("tokenizer.encoder.mlp_layers.1.weight")
    width = 0 if first is None else first.shape[1] - side_width(cfg[CodeOptions])
    return len(model["code_NT"]), width
