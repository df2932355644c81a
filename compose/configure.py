"""Configuration: the typed options of a run's parts, from a YAML file and a command line."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import settings
from compose.checks import check_together
from compose.parts import MethodOptions, all_sections, composition, owners, sections
from compose.retired import RETIRED
from settings import Config
from utils import Problem


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read one YAML file (None: all defaults) and apply `--key=value` overrides.

    Raises Problem for whatever is wrong, quoting the key and the value.
    """
    return build({} if path is None else settings.read_yaml(Path(path)), parse_overrides(overrides))


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    return settings.parse_overrides(
        overrides, [k for kind in all_sections().values() for k in settings.takes_text(kind)]
    )


def build(preset: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Config:
    """Typed options of a run's parts. preset: as a file has them, those of other parts are left aside;
    given: as a command line has them, those of other parts are refused.
    """
    given = given or {}
    source = {**preset, **given}.get("data_path")
    if isinstance(source, str) and source.lower().endswith(".csv"):  # names the data set too
        preset = {"dataset": Path(source).stem, **preset}
    m = composition(preset, given)
    kinds, known = sections(m), owners()
    own = {key for kind in kinds.values() for key in settings.fields_of(kind)}
    for key in [*preset, *given]:
        if key not in known:
            raise unknown(str(key), known)
    if foreign := [key for key in given if key not in own]:
        raise Problem(
            f"--{foreign[0]} belongs to {' and '.join(known[foreign[0]])}, which this run does not have "
            f"({', '.join(title for title in kinds if ' ' in title)})"
        )
    raw = {**preset, **given}
    aside = {k: v for k, v in raw.items() if k not in own}
    for key, value in aside.items():  # a wrong value is refused, whoever it is for
        settings.check_value(next(iter(known[key].values())), key, value)
    chosen = {k: getattr(m, k) for k in settings.fields_of(MethodOptions)}
    cfg = settings.compose(kinds, {**{k: v for k, v in raw.items() if k in own}, **chosen})
    check_together(cfg)
    for key in given:
        if needs := settings.unread(cfg, key):
            raise Problem(f"--{key}: is read with {needs} only; set that too, or drop it")
    return replace(cfg, aside=aside)


def change(cfg: Config, **changes: Any) -> Config:
    """A copy with some options (flat names) changed, checked like any other."""
    names = settings.fields_of(MethodOptions)
    kept = {k: v for k, v in settings.flat(cfg).items() if k not in names or "method" not in changes}
    parts = {k: getattr(cfg[MethodOptions], k) for k in ("tokenizer", "recommender") if k not in changes}
    return build({**cfg.aside, **parts, **kept, **changes})


def unknown(key: str, known: Mapping[str, Any]) -> Problem:
    return Problem(f"option {key!r} {RETIRED[key]}") if key in RETIRED else settings.unknown(key, known)
