"""The machinery of options: typed, flat names in one YAML file, `--key=value` on the command line.

Every part of the program declares its own options, a frozen dataclass of `option(...)` fields beside the
code that reads them; this module knows none of them. A run's `Config` holds the sections of the parts it is
made of. A key that nobody declares, a key given two values, a wrong type or a value out of range stops the run
before anything is loaded.
"""

import dataclasses
import functools
import math
import re
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from utils import Problem, log, nearest, quoted, regular_file, shortened, shown

S = TypeVar("S")


NUMBERS = {  # what YAML may read as a number, by its tag
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$",
    "tag:yaml.org,2002:float": r"([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)"
    r"|\.(nan|NaN|NAN))$",
}


def option(  # noqa: PLR0913
    default: Any, meaning: str, *, ge: float | None = None, gt: float | None = None, le: float | None = None,
    needs: tuple[str, ...] = (), free: bool = False, sizeless: bool = False, judges: bool = False, path: bool = False,
) -> Any:  # fmt: skip
    """One option: default, meaning (shown by --help), and its closed (ge, le) or open (gt) range.

    needs: other options one of which must be set for this one to be read: `name: value value` (one of these), `name`
    (set at all), `name=value` (set at all, for example so), or the title of a section; free: results
    do not depend on it, so it counts in no hash and no comparison of runs; sizeless: a trained network's weights have
    the same sizes whatever it is, so it cannot be changed afterwards; judges: scores under other values of it cannot be
    held against each other; path: it names a file or folder.
    """
    meta = {"meaning": meaning, "needs": needs, "free": free, "sizeless": sizeless, "judges": judges, "path": path}
    meta |= {k: v for k, v in {"ge": ge, "gt": gt, "le": le}.items() if v is not None}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Config:
    """The options of one run: a section for each part it is made of."""

    sections: Mapping[str, Any]  # title -> the part's options
    aside: Mapping[str, Any] = field(default_factory=dict, compare=False)  # of a file, for parts that others use

    def __getitem__(self, kind: type[S]) -> S:
        """The section of a class (or of a class derived from it)."""
        for section in self.sections.values():
            if isinstance(section, kind):
                return section
        raise KeyError(f"this run has no {kind.__name__}")

    def __contains__(self, kind: type) -> bool:
        return any(isinstance(section, kind) for section in self.sections.values())


def fields_of(kind: type) -> dict[str, Any]:
    """Name -> dataclass field of a section's options."""
    return {f.name: f for f in dataclasses.fields(kind)}


def compose(kinds: Mapping[str, type], raw: Mapping[str, Any]) -> Config:
    """Typed sections from flat names; every key of `raw` must belong to one of the kinds."""
    return Config({title: section(kind, raw) for title, kind in kinds.items()})


def section(kind: type[S], raw: Mapping[str, Any]) -> S:
    """One part's options from the keys of `raw` that are its own; Problem quotes what does not fit."""
    want, own = hints(kind), fields_of(kind)
    return kind(**{k: coerce(want[k], raw[k], k, f.metadata) for k, f in own.items() if k in raw})


def check_value(kind: type, key: str, value: Any) -> None:
    """Problem when a value does not fit the option `key` of a section."""
    coerce(hints(kind)[key], value, key, fields_of(kind)[key].metadata)


def flat(cfg: Config) -> dict[str, Any]:
    """All options of a run as one flat dictionary, section by section."""
    return {k: v for part in cfg.sections.values() for k, v in vars(part).items()}


def unread(cfg: Config, key: str) -> list[dict[str, Any]]:
    """What would have to be set for an option to be read that differs from its default; nothing where it is read.

    Each is option and value (None: any will do), or a section's title and None.
    """
    part = next(p for p in cfg.sections.values() if key in fields_of(type(p)))
    needs, now = fields_of(type(part))[key].metadata["needs"], {**dict.fromkeys(cfg.sections, True), **flat(cfg)}
    ways: list[dict[str, Any]] = []
    for need in needs:
        name, values, example = re.findall(r"^([\w ]+)(?:: (.*)|=(.*))?$", need)[0]
        if str(now.get(name)).lower() in values.split() if values else now.get(name):
            return []
        ways += [{name: v} for v in (values.split() if values else [parse_yaml(example)] if example else [None])]
    return ways if now[key] != getattr(type(part)(), key) else []


def read_with(f: Any) -> list[str]:
    """What an option's field needs, in words."""
    return [need.partition("=")[0] for need in f.metadata["needs"]]


def changed(part: Any) -> dict[str, Any]:
    """A part's options that count and differ from their default: an option that comes later changes nothing."""
    kind = type(part)
    plain = dataclasses.asdict(part)
    default = dataclasses.asdict(kind())
    return {k: plain[k] for k, f in fields_of(kind).items() if not f.metadata["free"] and plain[k] != default[k]}


def counting(cfg: Config) -> dict[str, Any]:
    """What a run's results depend on: `changed` of all its parts."""
    return {k: v for part in cfg.sections.values() for k, v in changed(part).items()}


def differences(saved: Mapping[str, Any], cfg: Config) -> list[str]:
    """`option: before -> now` for each that counts; what was not saved then had its default."""
    found = []
    for part in cfg.sections.values():
        now, default = dataclasses.asdict(part), dataclasses.asdict(type(part)())
        counted = [k for k, f in fields_of(type(part)).items() if not f.metadata["free"]]
        before = {k: saved.get(k, default[k]) for k in counted}
        found += [f"{k}: {shown(before[k])} -> {shown(now[k])}" for k in counted if before[k] != now[k]]
    return found


def sizeless(cfg: Config) -> dict[str, Any]:
    """The options of a run that its weights' sizes do not show."""
    return _marked(cfg, "sizeless")


def judging(cfg: Config) -> dict[str, Any]:
    """The options of a run that its scores depend on beside the weights."""
    return _marked(cfg, "judges")


def _marked(cfg: Config, mark: str) -> dict[str, Any]:
    parts = cfg.sections.values()
    return {k: getattr(part, k) for part in parts for k, f in fields_of(type(part)).items() if f.metadata[mark]}


def dump(cfg: Config) -> str:
    """The resolved configuration as YAML; loading it gives an equal Config."""
    return yaml.safe_dump(flat(cfg), sort_keys=False, default_flow_style=None)


def plain_name(name: str) -> bool:
    """Names one file or folder right where it is put, on any file system, with room for an ending."""
    return Path(name).name == name and name[:1] not in ("", ".") and name.isprintable() and len(name.encode()) <= 200


# ---------------------------------------------------------------- reading


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file; Problem where it is not one mapping."""
    regular_file(path, "no such configuration file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise Problem(f"{path}: not readable as YAML: {e}") from None
    try:
        raw = parse_yaml(text)
    except Problem as e:
        raise Problem(f"{path}: not readable as YAML: {e}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(k, str) for k in raw):
        raise Problem(f"{path}: expected lines of the form key: value")
    return raw


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, of plain types only; Problem says what is wrong with it."""
    try:
        return yaml.load(text, Loader=UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: a date like 2026-02-31
        raise Problem(shortened(" ".join(str(e).split()), 400)) from None


def parse_overrides(overrides: Sequence[str], text: Iterable[str] = ()) -> dict[str, Any]:
    """`--key=value` words as a dictionary, values read as YAML; `text` names the options that take text."""
    found: dict[str, Any] = {}
    wrong, typed = [], dict[str, str]()
    for item in overrides:
        key, sep, value = item.removeprefix("--").partition("=")
        if not item.startswith("--") or not sep:
            wrong.append(f"{quoted(item)}: write options as --key=value")
            continue
        if key in typed:
            if typed[key] != value:
                wrong.append(f"--{shortened(key)}: given twice, as {quoted(typed[key])} and {quoted(value)}")
            else:
                log.warning(f"--{shortened(key)}: given twice with the same value")
            continue
        typed[key] = value
        try:
            parsed = parse_yaml(value)
            # a run called 007 or 12:30 is text, whatever YAML makes of it
            found[key] = value if key in text and not isinstance(parsed, str | list | dict | None) else parsed
        except Problem as e:
            wrong.append(f"--{shortened(key)}: {quoted(value)} is not readable ({e})")
    if wrong:
        raise Problem("; ".join(wrong))
    return found


def at_home(value: Any) -> Any:
    """The same with the home folder for a leading ~, which a shell leaves behind `=`."""
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def split_off(argv: list[str], names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split off `--name value` or `--name=value` for some names; the rest stays in order."""
    found: dict[str, str] = {}
    rest, words = [], iter(argv)
    for word in words:
        name, sep, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in names:
            rest.append(word)
            continue
        if name in found:
            raise Problem(f"--{name}: given twice")
        found[name] = at_home(value if sep else next(words, ""))
        if not found[name]:
            raise Problem(f"--{name}: needs a value")
    return found, rest


def command(
    argv: Sequence[str], kinds: Mapping[str, type], names: Sequence[str]
) -> tuple[list[str], dict[str, str], Config]:
    """(plain words, the values of the options `names` as text, the typed options of `kinds`) of a command line.

    An option's value stands behind `=` or is the next word. Text is taken as it stands, other values as YAML.
    """
    known = [*names, *(k for kind in kinds.values() for k in fields_of(kind))]
    found, plain = split_off(list(argv), known)
    if wrong := [word for word in plain if word.startswith("--")]:
        raise unknown(wrong[0].removeprefix("--").partition("=")[0], known)
    text = {k for kind in kinds.values() for k in takes_text(kind)}
    typed = {k: v if k in text else parse_overrides([f"--{k}={v}"])[k] for k, v in found.items() if k not in names}
    return plain, {k: found[k] for k in names if k in found}, compose(kinds, typed)


def takes_text(kind: type) -> list[str]:
    """Options of a section whose values are text."""
    return [k for k, want in hints(kind).items() if want is str or want == str | None]


def unknown(key: str, known: Collection[str]) -> Problem:
    """The error of an option that does not exist, with the closest one that does."""
    near = nearest(key, known, 0.5)
    hint = f"; did you mean {near!r}?" if near else "; --help lists them all"
    return Problem(f"unknown option {quoted(key)}{hint}")


def hints(cls: type) -> dict[str, Any]:
    """Type of each option of a dataclass."""
    return _hints(cls)


_hints = functools.cache(get_type_hints)  # asked of each option, and slow


def coerce(want: Any, value: Any, key: str, limits: Any) -> Any:
    """Convert `value` to the option's type; Problem quotes key and value when it does not fit."""
    origin, members = get_origin(want), get_args(want)
    value = at_home(value) if limits.get("path") else value
    if origin in (types.UnionType, Union):
        if value is None and type(None) in members:
            return None
        for member in members:
            if get_origin(member) is Literal and value in get_args(member):
                return value
        plain = [m for m in members if m is not type(None) and get_origin(m) is not Literal]
        if not plain:
            legal = [value for m in members for value in get_args(m)]
            raise Problem(f"{key}: expected one of {', '.join(map(str, legal))}, got {shown(value)}")
        return coerce(plain[0], value, key, limits)
    if origin is Literal:
        if value in members and not isinstance(value, bool):
            return value
        text = {False: "no", True: "yes"}.get(value) if isinstance(value, bool) else None
        if text in members:  # YAML reads a bare no as false
            return text
        raise Problem(f"{key}: expected one of {', '.join(map(str, members))}, got {shown(value)}")
    if origin is dict:
        return _mapping(members[1], value, key, limits)
    if origin is list:
        return [coerce(members[0], v, key, limits) for v in _as_list(value, key)]
    return _within(_scalar(want, value, key), key, limits)


def _as_list(value: Any, key: str) -> list[Any]:
    if isinstance(value, str):  # the published files write "recall@1,recall@5", a command line 64,64
        try:
            return [parse_yaml(v) for v in value.split(",") if v.strip()]
        except Problem:
            raise Problem(f"{key}: expected a list, got {shown(value)}") from None
    if isinstance(value, list):
        return value
    raise Problem(f"{key}: expected a list, got {shown(value)}")


def _mapping(want: Any, value: Any, key: str, limits: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise Problem(f"{key}: expected a mapping such as {{name: value}}, got {shown(value)}")
    return {n: v if want is Any else coerce(want, v, f"{key}.{n}", limits) for n, v in value.items()}


def _scalar(want: type, value: Any, key: str) -> Any:
    if type(value) is want:
        return value
    if want is float and type(value) in (int, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    if want is int and type(value) is float and value.is_integer():
        return int(value)  # YAML 1.2 files write 1e3
    if want is str and type(value) in (int, float):  # a data set called 2014
        return str(value)
    name = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[want]
    raise Problem(f"{key}: expected {name}, got {shown(value)}")


def _within(value: Any, key: str, limits: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise Problem(f"{key}: must be finite, got {shown(value)}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        checks = {"ge": (lambda a, b: a >= b, "at least"), "gt": (lambda a, b: a > b, "above"),
                  "le": (lambda a, b: a <= b, "at most")}  # fmt: skip
        for name, (holds, words) in checks.items():
            if name in limits and not holds(value, limits[name]):
                raise Problem(f"{key}: must be {words} {limits[name]}, got {shown(value)}")
    return value


def help_text(kinds: Mapping[str, type]) -> str:
    """Every option with its default and meaning, section by section."""
    lines = []
    for title, kind in kinds.items():
        lines.append(f"\n{title}:")
        want, default = hints(kind), kind()
        for name, f in fields_of(kind).items():
            value = getattr(default, name)
            choices = f" ({' | '.join(get_args(want[name]))})" if get_origin(want[name]) is Literal else ""
            needs = f" [read with {' or '.join(read_with(f))}]" if f.metadata["needs"] else ""
            lines.append(f"  --{name}={'-' if value is None else value}\n      {f.metadata['meaning']}{choices}{needs}")
    return "\n".join(lines)


class UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice with two values (PyYAML keeps the last one silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; Problem where it gives a key two values."""
        said: dict[str, list[Any]] = {}
        for k, v in node.value:
            key = self.construct_object(k, deep=deep)  # type: ignore[no-untyped-call]
            name = shortened(key) if isinstance(key, str) else shown(key)
            said.setdefault(name, []).append(self.construct_object(v, deep=True))  # type: ignore[no-untyped-call]
        twice = {name: values for name, values in said.items() if len(values) > 1}
        if wrong := {name: values for name, values in twice.items() if len({*map(shown, values)}) > 1}:
            told = [f"{name} ({' and '.join(map(shown, values))})" for name, values in wrong.items()]
            raise Problem(f"option given twice: {', '.join(told)}")
        if twice:
            log.warning(f"given twice with the same value: {', '.join(twice)}")
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 010 as 8 and 1:30 as 90, later versions do not: here they are text, which no number takes
UniqueKeyLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in ways if tag not in NUMBERS]
    for first, ways in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for tag, pattern in NUMBERS.items():
    UniqueKeyLoader.add_implicit_resolver(tag, re.compile(pattern), list("-+.0123456789"))  # type: ignore[no-untyped-call]
