"""The source of the documentation site: the pages of docs/, and those that come from code.

  python scripts/docs_pages.py OUT      called by scripts/docs.sh

Options, commands, presets, the Python API and the source tree are generated. An option without a help text, a file or a
public name without a docstring, a preset without a header and a page without a place in NAV are errors. README,
CONTRIBUTING, CHANGELOG and results/ are pages too. Links to other files of the repository become plain text.
"""

import ast
import importlib
import inspect
import posixpath
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import runs.early  # noqa: F401

import settings
from compose import parts
from readers.encoders import EmbedOptions
from readers.prepare import PrepareOptions
from readers.raw.scan import SourceOptions
from utils import Problem, as_command

NAV = {
    "Tutorials": "first-run walkthrough your-shop",
    "How-to": "get-the-data reproduce-the-paper choose-a-method compare-runs read-the-report resume-and-recover "
              "gpu-and-multi-node multi-node serving refresh-sids extend contributing",
    "Reference": "options cli presets run-folder data-formats python-api source-tree glossary migrating changelog",
    "Explanation": "method beyond-the-paper architecture performance forge varlen language-models baselines",
    "Research": "results diger log limitations faq",
}  # fmt: skip
COPIED = {"README.md": "index", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}
API = {
    "A trained model": ("serve.loaded", "serve.hub"),
    "Metrics and comparisons": ("metrics", "runs.paired"),
    "Extension points": ("joint.uncertainty", "joint.moving", "sids.tokenizer", "recommenders.base",
                         "recommenders.protocol", "recommenders.tokens", "recommenders.items", "settings"),
    "The paper": ("vq", "joint.quantizer", "joint.diger", "model"),
}  # fmt: skip
OF_SCRIPTS = {"prepare_data.py, source": SourceOptions, "prepare_data.py, preparation": PrepareOptions,
              "embed_items.py": EmbedOptions}  # fmt: skip
SOURCES = ("joint", "compose", "recommenders", "sids", "readers", "runs", "serve", "scripts")
LIMITS = {"ge": "≥", "gt": ">", "le": "≤"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)|src=\"(?!https?:)([^\"]+)\"")


# ---------------------------------------------------------------- pages from code


def options_page(kinds: Mapping[str, type] | None = None) -> str:
    """A table a part: every option, its default, its meaning; Problem where one has no help text."""
    text = ["# Options\n\nWritten `key: value` in a YAML file, `--key=value` on a command line. `-` is no value.\n"]
    for title, kind in (kinds or {**parts.all_sections(), **OF_SCRIPTS}).items():
        text.append(f"\n## {title[0].upper()}{title[1:]}\n\n| option | default | meaning |\n|---|---|---|\n")
        want, default = settings.hints(kind), kind()
        for name, f in settings.fields_of(kind).items():
            if not f.metadata.get("meaning", "").strip():
                raise Problem(f"{kind.__module__}.{kind.__name__}: the option {name} has no help text")
            value = getattr(default, name)
            said = [f.metadata["meaning"]]
            if get_origin(want[name]) is Literal:
                said.append(f"one of {', '.join(map(str, get_args(want[name])))}")
            said += [f"{word} {f.metadata[k]}" for k, word in LIMITS.items() if k in f.metadata]
            said += [f"read with {' or '.join(f'`{n}`' for n in settings.read_with(f))}"] if f.metadata["needs"] else []
            text.append(f"| `{name}` | `{'-' if value is None else value}` | {cell('; '.join(said))} |\n")
    return "".join(text)


def cell(text: str) -> str:
    """Text of a table's cell; what stands between angle brackets is no HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def cli_page(files: list[Path] | None = None) -> str:
    """What each command says of itself; Problem where it says nothing."""
    text = ["# Commands\n\n`--help` prints the same and all options.\n"]
    for path in files or [ROOT / "main.py", *sorted((ROOT / "scripts").glob("*.py"))]:
        source = path.read_text(encoding="utf-8")
        said = ast.get_docstring(ast.parse(source))
        if not said:
            raise Problem(f"{path}: a command without a docstring")
        if "__main__" in source:
            text.append(f"\n## {path.name}\n\n```text\n{said}\n```\n")
    return "".join(text)


def presets_page(folder: Path = ROOT / "config") -> str:
    """Every preset with its header; Problem where it has none."""
    table, full = [], []
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if not (first := re.match(r"# (.+)\n", text)):
            raise Problem(f"{path}: a preset without a header; its first line says what it is for")
        table.append(f"| [{path.stem}](#{path.stem}) | {cell(first[1])} |\n")
        full.append(f"\n## {path.stem}\n\n```yaml\n{text}```\n")
    head = "# Presets\n\nThe files of `config/`. A preset is taken with `--config` or by the name of its data set.\n\n"
    return "".join([head, "| preset | what it is |\n|---|---|\n", *table, *full])


def api_page() -> str:
    """Public classes and functions with their docstrings."""
    text = ["# Python API\n\nFrom the docstrings. Modules are imported from the repository's folder.\n"]
    for title, modules in API.items():
        text.append(f"\n## {title}\n")
        for name in modules:
            module = importlib.import_module(name)
            text.append(f"\n### `{name}`\n\n{prose(module)}\n")
            text += [f"\n{entry}" for entry in members(module)]
    return "".join(text)


def members(module: ModuleType) -> Iterator[str]:
    """An entry for each public class and function; Problem where one has no docstring and inherits none."""
    for name, value in vars(module).items():
        own = inspect.isclass(value) or inspect.isfunction(value)
        if not own or name.startswith("_") or value.__module__ != module.__name__:
            continue
        inner = [part for part, f in vars(value).items() if part[0] != "_" and inspect.isfunction(f)]
        silent = [f"{name}.{part}" for part in inner if not inspect.getdoc(getattr(value, part))]
        if silent := [name] * (not value.__doc__) + silent:
            raise Problem(f"{module.__name__}: no docstring: {', '.join(silent)}")
        if inspect.isclass(value):
            yield f"#### `class {name}`\n\n{prose(value)}\n"
            for part in inner:
                if text := prose(method := vars(value)[part]):
                    yield f"```python\n{part}{signature(method)}\n```\n\n{text}\n"
        else:
            yield f"#### `{name}`\n\n```python\n{name}{signature(value)}\n```\n\n{prose(value)}\n"


def source_page() -> str:
    """Every file of the program with the first sentence that it says of itself; Problem where it says nothing."""
    text, folder = ["# Source tree\n\nEvery Python file, and what it says of itself.\n"], None
    inside = (path for name in SOURCES for path in sorted((ROOT / name).rglob("*.py"), key=lambda p: (p.parent, p)))
    for path in [*sorted(ROOT.glob("*.py")), *inside]:
        said, place = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path.relative_to(ROOT)
        package = place.name == "__init__.py"
        if not said:
            raise Problem(f"{place}: a file without a docstring")
        first = cell(re.split(r"(?<=\.)\s", " ".join(said.split()))[0].rstrip("."))
        if place.parent != folder:
            folder = place.parent
            title, about = ("The root", folder.as_posix() + "/")[folder != Path()], f"{first}.\n\n" * package
            text.append(f"\n## {title}\n\n{about}| file | what it is |\n|---|---|\n")
        if not package:
            text.append(f"| `{place.name}` | {first} |\n")
    return "".join(text)


def signature(function: Any) -> str:
    """The names without their modules, one parameter list."""
    text = re.sub(r"<(?:class|function) '?([\w.]+)[^>]*>", r"\1", str(inspect.signature(function)))
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text)


def prose(value: Any) -> str:
    """A docstring of one's own as Markdown."""
    return inspect.cleandoc(vars(value).get("__doc__") or value.__doc__ or "").replace("<", "&lt;").replace("*", "\\*")


# ---------------------------------------------------------------- pages of the repository


def relinked(text: str, page: str) -> str:
    """Markdown whose links lead within the site; `page`: where it lies in the repository."""
    folder = "" if page in COPIED else posixpath.dirname(page)
    depth = folder.removeprefix("docs")

    def one(found: re.Match[str]) -> str:
        mark, label, path, anchor, source = found.groups()
        if not (source or path):
            return found[0]
        target = posixpath.normpath(posixpath.join(folder, source or path))
        place = f"{COPIED[target]}.md" if target in COPIED else target.removeprefix("docs/")
        if not source and ((place == target and not target.startswith("results/")) or target.endswith(".json")):
            return label if target in label or "/" in label else f"{label} (`{target}`)"
        place = posixpath.relpath(place, depth or ".")
        return f'src="{place}"' if source else f"{mark}[{label}]({place}{anchor or ''})"

    return LINK.sub(one, text)


def pages() -> dict[str, str]:
    """Name -> Markdown of every page; Problem where a page has no place in the navigation."""
    made = {"options.md": options_page(), "cli.md": cli_page(), "presets.md": presets_page()}
    made |= {"python-api.md": api_page(), "source-tree.md": source_page()}
    sources = [*(ROOT / name for name in COPIED), *(ROOT / "docs").glob("*.md"), *(ROOT / "results").rglob("*.md")]
    for path in sources:
        name = path.relative_to(ROOT).as_posix()
        text = relinked(path.read_text(encoding="utf-8"), name)
        if name.startswith("results/"):
            text = f"---\norphan: true\n---\n{text}"
        made[f"{COPIED[name]}.md" if name in COPIED else name.removeprefix("docs/")] = text
    placed = {f"{name}.md" for names in NAV.values() for name in names.split()}
    if lost := {name for name in made if "/" not in name and name != "index.md"} - placed:
        raise Problem(f"scripts/docs_pages.py: NAV has no place for {', '.join(sorted(lost))}")
    for title, names in NAV.items():
        tree = "\n".join(name for name in names.split() if f"{name}.md" in made)
        made["index.md"] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{tree}\n```\n"
    return made


def write(argv: list[str]) -> None:
    if len(argv) != 1:
        raise Problem("docs_pages.py: needs the folder that the source goes to")
    out = Path(argv[0])
    shutil.rmtree(out, ignore_errors=True)
    for name, text in pages().items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in [*(ROOT / "docs" / "pictures").iterdir(), *(ROOT / "results").rglob("*.svg")]:
        place = out / path.relative_to(ROOT).as_posix().removeprefix("docs/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


if __name__ == "__main__":
    as_command(__doc__, write)
