"""The words of a command line, and --help."""

from collections.abc import Mapping
from typing import Any

import settings
from compose.configure import parse_overrides
from compose.parts import all_sections, composition, sections
from readers.splits import DataOptions
from utils import Problem, seeds_of


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
