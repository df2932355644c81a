"""The report of finished runs as one HTML file that needs nothing else.

  python scripts/report.py myckpt/scientific/first [myckpt/scientific/second ...] [--output FILE.html]
  python scripts/report.py myckpt/scientific/first --pictures DIR

A training writes its own as report.html into its run folder. Several runs stand side by side, with paired
significance against the first; runs that were measured in unlike ways are refused. Default output: report.html of
the run folder, or report.html in the present folder when there are several runs. --pictures writes the
figures of one run as files of their own, SVG and PNG, into a folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import settings
from runs import charts, page
from runs.folder import RunFolder
from utils import Problem, as_command, make_folder, quoted, write_atomic, write_text


def run(argv: list[str]) -> Path:
    """Write the report of the runs that a command line names; returns its path."""
    names, given, _ = settings.command(argv, {}, ["output", "pictures"])
    if not names:
        raise Problem("report: name the folder of a finished run, myckpt/<data set>/<run>")
    folders = [RunFolder(Path(name)) for name in names]
    if "pictures" in given:
        return pictures(folders, Path(given["pictures"]), given)
    alone = folders[0].path if len(folders) == 1 else Path()
    path = Path(given.get("output", alone / "report.html"))
    if path.suffix.lower() not in (".html", ".htm"):
        raise Problem(f"--output: {quoted(str(path))}: expected a name that ends in .html")
    write_text(path, page.page([page.finished(folder) for folder in folders]))
    return path


def pictures(folders: list[RunFolder], out: Path, given: dict[str, str]) -> Path:
    """Write the figures of a run as files; returns their folder."""
    if len(folders) != 1 or "output" in given:
        raise Problem("--pictures: takes the figures of one run, and no --output")
    found = page.finished(folders[0])
    files = charts.files([*page.training(found), *(page.usage(found) if found.sids else [])])
    make_folder(out)
    for name, content in files.items():
        write_atomic(out / name, content)
    return out


if __name__ == "__main__":
    as_command(__doc__, lambda argv: print(f"report: {run(argv)}"))
