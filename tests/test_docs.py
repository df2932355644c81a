"""The documentation: generated pages are complete, prose is short, the notebook runs, the site builds."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from compose import parts
from joint import uncertainty
from scripts import docs_pages, make_demo, notebook
from settings import option
from utils import Problem

ROOT = Path(docs_pages.__file__).resolve().parent.parent
BUILDS = all(find_spec(name) for name in ("sphinx", "myst_parser", "furo"))
TUTORIALS = ["README.md", *(f"docs/{name}.md" for name in docs_pages.NAV["Tutorials"].split())]


def test_every_option_and_preset_has_its_line():
    page = docs_pages.options_page()
    assert [name for name in parts.owners() if f"\n| `{name}` |" not in page] == []
    table = docs_pages.presets_page()
    assert all(f"| [{p.stem}](#{p.stem}) |" in table for p in (ROOT / "config").glob("*.yaml"))


def test_what_says_nothing_of_itself_is_an_error(tmp_path, monkeypatch):
    @dataclass
    class Silent:
        loud: int = option(1, "heard")
        mute: int = option(2, " ")

    with pytest.raises(Problem, match=r"Silent: the option mute has no help text"):
        docs_pages.options_page({"silent": Silent})
    (tmp_path / "bare.yaml").write_text("epochs: 3\n")
    with pytest.raises(Problem, match=r"bare\.yaml: a preset without a header"):
        docs_pages.presets_page(tmp_path)
    (tmp_path / "bare.py").write_text("print(1)\n")
    with pytest.raises(Problem, match=r"bare\.py: a command without a docstring"):
        docs_pages.cli_page([tmp_path / "bare.py"])
    module = ModuleType("quiet")
    exec("class Mute:\n    def word(self): ...", vars(module))
    with pytest.raises(Problem, match=r"quiet: no docstring: Mute, Mute\.word"):
        list(docs_pages.members(module))
    monkeypatch.setattr(docs_pages, "ROOT", tmp_path)
    with pytest.raises(Problem, match=r"bare\.py: a file without a docstring"):
        docs_pages.source_page()


def test_a_page_needs_a_place_in_the_navigation(monkeypatch):
    made = docs_pages.pages()
    assert {"options.md", "cli.md", "presets.md", "python-api.md", "index.md"} <= made.keys()
    monkeypatch.setattr(docs_pages, "NAV", {**docs_pages.NAV, "Research": "results diger log limitations"})
    with pytest.raises(Problem, match=r"NAV has no place for faq\.md"):
        docs_pages.pages()


@pytest.mark.parametrize(
    ("text", "page", "want"),
    [
        ("[a](docs/faq.md#x)", "README.md", "[a](faq.md#x)"),
        ("[a](../CHANGELOG.md)", "docs/faq.md", "[a](changelog.md)"),
        ("![p](../results/s/a.svg)", "docs/faq.md", "![p](results/s/a.svg)"),
        ("[t](../../docs/results.md)", "results/s/a.md", "[t](../../results.md)"),
        ("[how](../runs/paired.py)", "docs/faq.md", "how (`runs/paired.py`)"),
        ('<img src="docs/pictures/a.svg">', "README.md", '<img src="pictures/a.svg">'),
        ("[x](#below) [y](https://a.b)", "docs/faq.md", "[x](#below) [y](https://a.b)"),
    ],
)
def test_links_lead_within_the_site(text, page, want):
    assert docs_pages.relinked(text, page) == want


def sentences(text):
    """Words of each sentence outside tables, code and headings."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    text = re.sub(r"^\s*(\||#).*$", "", text, flags=re.M)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)|`[^`]*`", r"X\1", text)
    text = re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n\n", text, flags=re.M)
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z0-9*(\"±X])", " ".join(paragraph.split())):
            if len(words := re.findall(r"[^\s]*\w[^\s]*", sentence)) > 2:
                yield len(words), sentence


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_sentences_are_short(path):
    if path.name == "log.md":
        return  # a history
    found = list(sentences(path.read_text()))
    assert [text for count, text in found if count > 30] == []
    assert sum(count for count, _ in found) / max(len(found), 1) <= 18
    if str(path.relative_to(ROOT)) in TUTORIALS:
        assert not any(";" in text for _, text in found)


@pytest.mark.skipif(not BUILDS, reason="the packages of requirements-docs.txt are not installed")
def test_the_site_builds_without_a_warning(tmp_path):
    docs_pages.write([str(tmp_path / "source")])
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-c", str(ROOT / "docs"), str(tmp_path / "source")]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    built = subprocess.run([*command, str(tmp_path / "html")], check=False, capture_output=True, text=True, env=quiet)
    assert (built.returncode, built.stderr) == (0, "")
    assert "<table" in (tmp_path / "html" / "options.html").read_text()


def test_the_walkthrough_runs_and_its_page_shows_its_code(tmp_path, monkeypatch):
    source = (ROOT / "docs" / "walkthrough.py").read_text()
    page = (ROOT / "docs" / "walkthrough.md").read_text()
    parts = [c.text if c.prose else f"```python\n{c.text}\n```" for c in notebook.cells(source)]
    places = [page.find(part) for part in parts]
    assert -1 not in places and places == sorted(places)  # python scripts/notebook.py docs/walkthrough.py writes it
    monkeypatch.setattr(make_demo, "N_USERS", 150)
    monkeypatch.chdir(ROOT)
    made = notebook.executed(source, {"WORK": str(tmp_path), "PICTURES": str(tmp_path), "QUICK": True})
    shown = re.findall(r"^!\[.*\]\(pictures/(.*)\)$", page, re.M)
    assert re.findall(r"^!\[.*\]\(pictures/(.*)\)$", made, re.M) == shown and len(shown) == 3
    assert all((tmp_path / name).read_text().startswith("<svg") for name in shown)
    assert "SID of our item: [" in made and "items with other codes: " in made
    with pytest.raises(Problem, match="needs one notebook"):
        notebook.run(["page.md"])


def test_the_worked_example_of_a_decay_is_one():
    """The code of docs/extend.md, as it stands there, with its own test."""
    code, _, test = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), re.S)
    names = {**vars(uncertainty), "__name__": "extend"}
    exec(code, names)
    exec(test, names)
    names["test_the_noise_is_gone_after_its_steps"]()
    assert issubclass(names["Linear"], uncertainty.Decay)
