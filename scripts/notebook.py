"""Run a notebook in the percent format and write it, with what it printed, as a page beside it.

  python scripts/notebook.py docs/walkthrough.py [--work FOLDER]
"""

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import runs.early  # noqa: F401

import settings
from utils import Problem, as_command, log, write_text


class Cell(NamedTuple):
    prose: bool
    text: str


def cells(source: str) -> Iterator[Cell]:
    """The cells behind `# %%` and `# %% [markdown]`, whose lines are comments."""
    for mark, body in re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n)*)", source, flags=re.MULTILINE):
        prose = "[markdown]" in mark
        yield Cell(prose, re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip() if prose else body.strip())


def executed(source: str, given: dict[str, Any]) -> str:
    """The page: prose, code, and below each cell what it printed; pictures among that are shown. given: its names."""
    parts, names = [], {"__name__": "notebook", **given}
    for number, cell in enumerate(cells(source), 1):
        parts.append(cell.text if cell.prose else f"```python\n{cell.text}\n```")
        if cell.prose:
            continue
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(cell.text, f"cell {number}", "exec"), names)
        lines = said.getvalue().rstrip().splitlines()
        shown = [line for line in lines if line.startswith("![")]
        text = "\n".join(line for line in lines if line not in shown)
        parts += [f"```text\n{text}\n```"] if text else []
        parts += shown
    return "\n\n".join(parts) + "\n"


def run(argv: list[str]) -> None:
    words, given, _ = settings.command(argv, {}, ["work"])
    if len(words) != 1 or not words[0].endswith(".py"):
        raise Problem("notebook.py: needs one notebook, a .py file in the percent format")
    path = Path(words[0])
    page = executed(path.read_text(encoding="utf-8"), {"WORK": given["work"]} if "work" in given else {})
    write_text(path.with_suffix(".md"), page)
    log.info(f"{path.with_suffix('.md')} is written")


if __name__ == "__main__":
    as_command(__doc__, run)
