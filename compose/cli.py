"""The words of a command line: --help, --dry_run, presets and the configuration that they ask for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import settings
from compose.configure import build, parse_overrides
from compose.parts import all_sections, composition, sections
from readers.splits import DataOptions
from settings import Config
from utils import Problem, is_file, log, seeds_of, shortened

CONFIG = Path(__file__).resolve().parent.parent / "config"


def configuration(
    argv: list[str], usage: str | None, check: Callable[[Config], object],
    composed: Callable[[dict[str, Any], dict[str, Any]], Config] = build,
) -> Config:  # fmt: skip
    """The configuration that a command line asks for; answers --help and --dry_run (`check`) itself.

    composed: (options of the file, options of the command line) -> configuration.
    """
    if "--help" in argv or "-h" in argv:
        print(usage, help_of(argv), sep="\n")
        raise SystemExit(0)
    given, overrides = settings.split_off(argv, ["config", "data_path"])
    overrides += [f"--data_path={given['data_path']}"] if "data_path" in given else []
    given_options = parse_overrides([a for a in overrides if a != "--dry_run"])
    preset = preset_of(Path(given["config"]), given_options) if "config" in given else {}
    cfg = composed(preset, given_options)
    if "--dry_run" in overrides:
        check(cfg)
        print(settings.dump(cfg), end="")
        raise SystemExit(0)
    return cfg


def help_of(argv: list[str]) -> str:
    """All options; those of the parts that the command line chooses come first, as far as it can be read."""
    given, words = settings.split_off([a for a in argv if a not in ("--help", "-h", "--dry_run")], ["config"])
    try:
        preset = settings.read_yaml(Path(given["config"])) if "config" in given else {}
        return help_text(preset, parse_overrides([w for w in words if "=" in w]))
    except Problem:
        return help_text()


def preset_of(path: Path, overrides: dict[str, Any], typed: str | None = None) -> dict[str, Any]:
    """The options of a file, with the data set that is meant.

    typed: its name as a word of the command line. A file need not repeat it. Problem where the two name different data
    sets, as a copied preset does until its line is changed, or none: the default is for commands without a file.
    """
    raw = settings.read_yaml(path)
    for source in (raw, overrides):
        for key in {"dataset", "data_path"} & source.keys():
            if source[key] is not None:
                settings.check_value(DataOptions, key, source[key])
    if typed is None:
        both = {**raw, **overrides}
        if both.get("dataset") is None and not str(both.get("data_path")).lower().endswith(".csv"):
            raise Problem(f"{path}: names no data set; write dataset: NAME there, or add --dataset=NAME")
        return raw
    said = raw.get("dataset")
    if said is not None and str(said) != typed:
        raise Problem(
            f"{path}: says dataset: {shortened(said)}, but {typed} was asked for; write dataset: {typed} there, or, if "
            f"the file is a preset for {shortened(said)}, ask for {shortened(said)} with --config={path}"
        )
    if str(overrides.get("dataset", typed)) != typed:
        raise Problem(
            f"--dataset={overrides['dataset']}: {typed} was asked for; drop one of the two, --config=FILE "
            "names a preset"
        )
    return {**raw, "dataset": typed}


def presets(stem: str, dataset: str, overrides: dict[str, Any]) -> list[Path]:
    """The files <stem>.yaml there are: beside the data, where scripts/prepare_data.py puts one, then in config/."""
    place = Path(settings.at_home(str(overrides.get("data_path", DataOptions().data_path))))
    found = [p for p in (folder / f"{stem}.yaml" for folder in (place / dataset, place, CONFIG)) if is_file(p)]
    if len(found) > 1:
        log.warning(f"{found[0]} is the preset, since it lies beside the data; for {found[1]} say --config={found[1]}")
    return found


def no_preset(dataset: str, overrides: dict[str, Any]) -> Problem:
    """Why there is no preset for a data set: it is no name, its data are elsewhere, or nobody has written one."""
    place, known = overrides.get("data_path"), ", ".join(sorted(p.stem for p in CONFIG.glob("*.yaml")))
    if Path(dataset).name != dataset:
        path = Path(dataset)
        return Problem(f"{dataset}: is a path; write the name of the data set, {path.name} --data_path={path.parent}")
    if place is not None and not Path(settings.at_home(str(place))).exists():
        return Problem(f"data_path: {place} is not there; name the folder that holds {dataset}/ or its files")
    where = f"in {place}, nor in {place}/{dataset}" if place is not None else "beside the data (--data_path=DIR)"
    return Problem(
        f"config/{dataset}.yaml: no such configuration, and no {dataset}.yaml {where}, where scripts/prepare_data.py "
        f"puts it; there are {known}; copy one for your own data"
    )


def words_and_options(argv: list[str], names: list[str]) -> tuple[dict[str, str], list[str], dict[str, Any]]:
    """(the command's own options, those of `names`, as text; plain words; options of the runs) of a command line.

    Own options and --data_path, which is taken as it stands, have their value behind `=` or as the next word.
    """
    own, rest = settings.split_off(argv, [*names, "data_path"])
    place = {"data_path": own.pop("data_path")} if "data_path" in own else {}
    options = parse_overrides([w for w in rest if w.startswith("-")])
    return own, [w for w in rest if not w.startswith("-")], options | place


def seeds_asked(given: dict[str, str], overrides: dict[str, Any], usual: str = "2020") -> list[str]:
    """The seeds of `--seeds`, or the one of `--seed`, which is taken out of the overrides; Problem when both are."""
    one = overrides.pop("seed", None)
    if one is None:
        return seeds_of(given.get("seeds", usual))
    settings.check_value(DataOptions, "seed", one)
    if "seeds" in given:
        raise Problem("--seed, --seeds: name one of the two")
    return seeds_of(str(one))


def help_text(preset: Mapping[str, Any] | None = None, given: Mapping[str, Any] | None = None) -> str:
    """Every option, those of the chosen parts first."""
    own = sections(composition(preset or {}, given or {}))
    others = {f"{title} (not in this run)": kind for title, kind in all_sections().items() if title not in own}
    return settings.help_text(own | others)
