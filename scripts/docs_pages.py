"""The pages of the site that come from code: options, commands, presets, Python API. A hook of mkdocs.yml.

An option without a help text, a script without a docstring and a preset without a header fail the build. README,
CONTRIBUTING, CHANGELOG and results/ become pages too. Links to other files of the repository become plain text.
"""

import ast
import posixpath
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import settings
from compose import parts
from readers.encoders import EmbedOptions
from readers.prepare import PrepareOptions
from readers.raw.scan import SourceOptions
from utils import Problem

COPIED = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
API = {
    "A trained model": ("serve.loaded", "serve.hub"),
    "Metrics and comparisons": ("metrics", "runs.paired"),
    "Extension points": ("joint.uncertainty", "joint.moving", "sids.tokenizer", "recommenders.base",
                         "recommenders.protocol", "recommenders.tokens", "recommenders.items", "settings"),
    "The paper": ("vq", "joint.quantizer", "joint.diger", "model"),
}  # fmt: skip
OF_SCRIPTS = {"prepare_data.py, source": SourceOptions, "prepare_data.py, preparation": PrepareOptions,
              "embed_items.py": EmbedOptions}  # fmt: skip
LIMITS = {"ge": "≥", "gt": ">", "le": "≤"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)|src=\"(?!https?:)([^\"]+)\"")


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
            said += [f"read with {' or '.join(f'`{n}`' for n in f.metadata['needs'])}"] if f.metadata["needs"] else []
            text.append(f"| `{name}` | `{'-' if value is None else value}` | {escaped('; '.join(said))} |\n")
    return "".join(text)


def escaped(text: str) -> str:
    """Text of a table's cell; what stands between angle brackets is no HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def cli_page(files: list[Path] | None = None) -> str:
    """What each command says of itself; Problem where it says nothing."""
    text = ["# Commands\n\n`--help` prints the same and all options.\n"]
    files = files or [ROOT / "main.py", *sorted((ROOT / "scripts").glob("*.py"))]
    for path in files:
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
        table.append(f"| [{path.stem}](#{path.stem}) | {escaped(first[1])} |\n")
        full.append(f"\n## {path.stem}\n\n```yaml\n{text}```\n")
    head = "# Presets\n\nThe files of `config/`. A preset is taken with `--config` or by the name of its data set.\n\n"
    return "".join([head, "| preset | what it is |\n|---|---|\n", *table, *full])


def api_page() -> str:
    """Directives that mkdocstrings fills from docstrings."""
    text = ["# Python API\n\nFrom the docstrings. The modules are imported from the repository's folder.\n"]
    for title, modules in API.items():
        text += [f"\n## {title}\n", *(f"\n::: {module}\n" for module in modules)]
    return "".join(text)


def relinked(text: str, page: str) -> str:
    """Markdown whose links lead within the site; `page`: where it lies in the repository."""
    moved = {source: name for name, source in COPIED.items()}
    here = posixpath.dirname(page) if page not in moved else ""
    depth = posixpath.dirname(page).removeprefix("docs").strip("/")

    def one(found: re.Match[str]) -> str:
        mark, label, path, anchor, source = found.groups()
        target = posixpath.normpath(posixpath.join(here, source or path)) if source or path else ""
        place = moved.get(target) or (
            target.removeprefix("docs/") if target.startswith(("docs/", "results/")) else None
        )
        if source:
            return f'src="{posixpath.relpath(place or target, depth or ".")}"'
        if not target:
            return found[0]
        if place is None or target.endswith(".json"):
            return label if label.strip("`") == target or "/" in label else f"{label} (`{target}`)"
        return f"{mark}[{label}]({posixpath.relpath(place, depth or '.')}{anchor or ''})"

    return LINK.sub(one, text)


# ---------------------------------------------------------------- what MkDocs calls


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File

    try:
        made = {"options.md": options_page(), "cli.md": cli_page(), "presets.md": presets_page(),
                "python-api.md": api_page()}  # fmt: skip
    except Problem as e:
        raise PluginError(str(e)) from None
    made |= {name: (ROOT / source).read_text(encoding="utf-8") for name, source in COPIED.items()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    for path in [*(ROOT / "results").rglob("*.md"), *(ROOT / "results").rglob("*.svg")]:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    name = page.file.src_uri
    return relinked(markdown, COPIED.get(name, name if name.startswith("results/") else f"docs/{name}"))
