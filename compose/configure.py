"""Configuration: the typed options of a run's parts, from a YAML file and a command line."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import settings
from compose.checks import check_together
from compose.parts import MethodOptions, all_sections, composition, owners, sections, ways_to
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


def build(
    preset: Mapping[str, Any], given: Mapping[str, Any] | None = None, firm: Collection[str] = ()
) -> Config:  # fmt: skip
    """Typed options of a run's parts. preset: as a file has them, those of other parts are left aside; given: as a
    command line has them, those of other parts are refused; firm: those of the preset that were typed as well.

    What was typed goes before what the file says; where that cannot be, the Contradiction names options that mend it.
    """
    usual = {k: v for kind in all_sections().values() for k, v in vars(kind()).items()}
    preset, given, wrong = translated(preset, given or {}, usual)
    source = {**preset, **given}.get("data_path")
    if isinstance(source, str) and source.lower().endswith(".csv"):  # names the data set too
        preset = {"dataset": Path(source).stem, **preset}
    if wrong := [*wrong, *wrong_values(preset, given)]:
        try:
            parts_of(preset, given)
        except Problem as e:
            wrong.append(e.reason if isinstance(e, Contradiction) else str(e))
        raise Problem("; ".join(dict.fromkeys(wrong)))
    try:
        cfg, told = checked(preset, given, firm)
    except Contradiction as e:
        ways = [way for each in e.ways if (way := whole_way(preset, given, firm, each))]
        raise Contradiction(e.reason, *ways[:2], idle=e.idle) from None
    for line in told:
        log.warning(line)
    return cfg


def parts_of(preset: Mapping[str, Any], given: Mapping[str, Any]) -> MethodOptions:
    """The parts of a run; Problem where what was typed is of another part, or is of parts that do not go together."""
    known, m = owners(), composition(preset, given)
    kinds = sections(m)
    own = {key for kind in kinds.values() for key in settings.fields_of(kind)}
    if other := [key for key in given if key in known and key not in own]:
        there = ", ".join(title for title in kinds if " " in title)
        told = [f"--{key} belongs to {' and '.join(known[key])}, which this run does not have" for key in other]
        raise Contradiction(f"{'; '.join(told)} ({there})", *ways_to(known[other[0]]), idle=True)
    return m


def checked(
    preset: Mapping[str, Any], given: Mapping[str, Any], firm: Collection[str]
) -> tuple[Config, list[str]]:  # fmt: skip
    """(a configuration of sound values, what is to be said of it)."""
    cfg, told = yielding(parts_of(preset, given), preset, given, firm)
    for key in given:
        if needs := settings.unread(cfg, key):
            raise Contradiction(f"--{key}: is read with {needs_of(key)} only", *ways_from(needs), idle=True)
    return cfg, told


def needs_of(key: str) -> str:
    """What an option is read with, in words."""
    kind = next(iter(owners()[key].values()))
    return " or ".join(settings.read_with(settings.fields_of(kind)[key]))


def ways_from(needs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The same with options in place of a section's title."""
    known = all_sections()
    return [way for need in needs for way in (ways_to(need) if need.keys() & known.keys() else [need])]


def whole_way(
    preset: Mapping[str, Any], given: Mapping[str, Any], firm: Collection[str], way: Mapping[str, Any], depth: int = 4
) -> dict[str, Any]:  # fmt: skip
    """A way out of a contradiction with all else that it takes until the options are accepted; {} where they never
    are: what was typed stays.
    """
    if way.keys() & {*given, *firm} or not depth:
        return {}
    both = {**given, **way}
    try:
        checked(preset, both, firm)
    except Contradiction as e:
        found = (whole_way(preset, both, firm, more, depth - 1) for more in e.ways)
        return next(({**way, **more} for more in found if more), {})
    except Problem:
        return {}
    return dict(way)


def composed(m: MethodOptions, preset: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    """The options of a run's parts, checked together."""
    kinds, raw = sections(m), {**preset, **given}
    own = {key for kind in kinds.values() for key in settings.fields_of(kind)}
    chosen = {k: getattr(m, k) for k in settings.fields_of(MethodOptions)}
    cfg = settings.compose(kinds, {**{k: v for k, v in raw.items() if k in own}, **chosen})
    check_together(cfg)
    return replace(cfg, aside={k: v for k, v in raw.items() if k not in own})


def yielding(
    m: MethodOptions, preset: Mapping[str, Any], given: Mapping[str, Any], firm: Collection[str]
) -> tuple[Config, list[str]]:  # fmt: skip
    """(options of a run, what is to be said): what was typed goes before what a file says and contradicts it.

    The contradiction is raised where the file has it by itself, or where none of its options could be mended.
    """
    mended: dict[str, Any] = {}
    told: list[str] = []
    while True:
        try:
            return composed(m, {**preset, **mended}, given), told
        except Contradiction as e:
            fixed = {*given, *firm, *mended, *settings.fields_of(MethodOptions)}
            free = [way for way in e.ways if way and way.keys() <= preset.keys() - fixed]
            if not free or not (given or firm) or contradicts({k: v for k, v in preset.items() if k not in firm}):
                raise
            mended |= free[0]
            words = ", ".join(f"{as_word(k, v)} in place of {shown(preset[k])}" for k, v in free[0].items())
            told.append(f"the preset gives way to what was typed, {words}: {e.reason}")


def contradicts(preset: Mapping[str, Any]) -> bool:
    """Do the options of a file contradict each other?"""
    try:
        composed(composition(preset, {}), preset, {})
    except Contradiction:
        return True
    return False


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

