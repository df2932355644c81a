"""Configuration: the typed options of a run's parts, from a YAML file and a command line."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import settings
from compose.checks import check_together
from compose.parts import ITEM_MODELS, JOINT, MethodOptions, all_sections, composition, owners, sections
from compose.retired import placeholders, translated
from settings import Config
from utils import Contradiction, Problem, as_word, log, shown


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
    usual = {k: v for kind in all_sections().values() for k, v in asdict(kind()).items()}
    preset, given, wrong = translated(preset, given or {}, usual)
    source = {**preset, **given}.get("data_path")
    if isinstance(source, str) and source.lower().endswith(".csv"):  # names the data set too
        preset = {"dataset": Path(source).stem, **preset}
    known, wrong = owners(), [*wrong, *wrong_values(preset, given)]
    try:
        m = composition(preset, given)
        kinds = sections(m)
        own = {key for kind in kinds.values() for key in settings.fields_of(kind)}
        wrong += [
            f"--{key} belongs to {' and '.join(known[key])}, which this run does not have "
            f"({', '.join(title for title in kinds if ' ' in title)}); {part_with(key)}"
            for key in given if key in known and key not in own
        ]  # fmt: skip
    except Problem as e:
        wrong += [str(e)]
    if wrong:
        raise Problem("; ".join(dict.fromkeys(wrong)))
    cfg = yielding(m, preset, given)
    for key in given:
        if needs := settings.unread(cfg, key):
            name, _, values = needs.partition(" or ")[0].partition(": ")
            way = f"; add --{name}={values.split()[0]}" if values and name not in given else ""
            raise Problem(f"--{key}: is read with {needs} only; set that too, or drop it{way}")
    return cfg


def composed(m: MethodOptions, preset: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    """The options of a run's parts, checked together."""
    kinds, raw = sections(m), {**preset, **given}
    own = {key for kind in kinds.values() for key in settings.fields_of(kind)}
    chosen = {k: getattr(m, k) for k in settings.fields_of(MethodOptions)}
    cfg = settings.compose(kinds, {**{k: v for k, v in raw.items() if k in own}, **chosen})
    check_together(cfg)
    return replace(cfg, aside={k: v for k, v in raw.items() if k not in own})


def yielding(m: MethodOptions, preset: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    """The options of a run, where what was typed goes before what a preset says, and before what contradicts it there.

    The contradiction is raised where the preset has it by itself, or where none of its options could be mended.
    """
    mended: dict[str, Any] = {}
    while True:
        try:
            return composed(m, {**preset, **mended}, given)
        except Contradiction as e:
            fixed = {*given, *mended, *settings.fields_of(MethodOptions)}
            free = [way for way in e.ways if way and way.keys() <= preset.keys() - fixed]
            if not free or not given or contradicts(m, preset):
                raise Contradiction(e.reason, *(way for way in e.ways if not way.keys() & given.keys())) from None
            mended |= free[0]
            told = ", ".join(f"{as_word(k, v)} in place of {shown(preset[k])}" for k, v in free[0].items())
            log.warning(f"the preset gives way to what was typed, {told}: {e.reason}")


def contradicts(m: MethodOptions, preset: Mapping[str, Any]) -> bool:
    try:
        composed(m, preset, {})
    except Contradiction:
        return True
    return False


def part_with(key: str) -> str:
    """The option that would give a run the part that an option belongs to."""
    for name, method in JOINT.items():
        if any(key in settings.fields_of(kind) for kind in method.option_groups.values()):
            return f"add --method={name}, or drop it"
    part, _, name = next(iter(owners()[key])).partition(" ")
    part = "method" if name in ITEM_MODELS else part
    return f"add --{part}={name}, or drop it" if part in ("tokenizer", "recommender", "method") else "drop it"


def wrong_values(preset: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """All unknown keys, placeholders and values that do not fit, whichever part they are for: a sentence each."""
    known, raw = owners(), {**preset, **given}
    wrong = [str(settings.unknown(str(key), known)) for key in raw if key not in known]
    for key in [key for key in raw if key in known]:
        told = []
        for kind in known[key].values():
            try:
                settings.check_value(kind, key, raw[key])
            except Problem as e:
                told.append(str(e))
        if len(told) == len(known[key]):  # the run's own part says more, where another would take it
            wrong.append(told[0])
    return [*wrong, *placeholders(raw)]


def change(cfg: Config, **changes: Any) -> Config:
    """A copy with some options (flat names) changed, checked like any other."""
    names = settings.fields_of(MethodOptions)
    kept = {k: v for k, v in settings.flat(cfg).items() if k not in names or "method" not in changes}
    parts = {k: getattr(cfg[MethodOptions], k) for k in ("tokenizer", "recommender") if k not in changes}
    return build({**cfg.aside, **parts, **kept, **changes})

