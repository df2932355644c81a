"""The HTML report: what it shows against the run's files, nothing of a file reaches it as markup, what it refuses."""

import dataclasses
import json
import re
import shutil
import struct
import zlib
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import main
from compose import configure
from runs import charts, page
from runs.folder import RunFolder
from runs.table import told_apart
from scripts import report
from utils import Problem, write_checkpoint

BAD = '<script>alert("1")</script>&\x07\'"><img src=x>'


class Elements(HTMLParser):
    """Checks that elements nest, and keeps tags, addresses and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag not in ("meta", "img", "line", "rect", "circle", "polyline") or self.get_starttag_text()[-2] != "/":
            self.open += [] if tag in ("meta", "img") else [tag]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def run(ground):
    """A finished joint run whose first title is an attack."""
    options, _ = ground
    folder = main.train(configure.build(options | {"run_name": "first", "resume": "auto"}))
    state = torch.load(folder.best, weights_only=True)
    write_checkpoint(folder.best, state | {"titles": [BAD, *state["titles"][1:]]})
    return folder


def copy_of(run, folder, **results):
    shutil.copytree(run.path, folder)
    copy = RunFolder(folder)
    copy.test.write_text(json.dumps(json.loads(run.test.read_text()) | results))
    return copy


def test_a_training_writes_its_report(run):
    assert (run.path / "report.html").read_text().startswith("<!doctype html>")


def test_the_page_is_sound_and_holds_no_foreign_markup(run):
    report.run([str(run.path)])
    text = (run.path / "report.html").read_text()
    found = Elements(text)
    assert not {"script", "link", "iframe", "object", "form"} & set(found.tags)
    assert all(a.startswith("data:image/png;base64,") for a in found.addresses)
    assert "default-src 'none'" in text and "\x07" not in text
    assert BAD.replace("\x07", "") in "".join(found.text)


def test_what_it_shows_is_what_the_run_has_written(run):
    text = "".join(Elements(page.page([page.finished(run)])).text)
    rank = np.load(run.path / "ranks-test.npy")[1]
    hits = rank < 10
    half = 1.96 * hits.std(ddof=1) / len(hits) ** 0.5
    assert f"{hits.mean():.4f}\xa0±{half:.4f}" in text
    assert f"seed{2020}" in text and json.loads(run.test.read_text())["content"]["hash"] in text
    index = json.loads((run.path / "tiny.index.json").read_text())
    assert " ".join(index["1"]) in text and "Item 1" in text


def test_groups_are_of_items_with_equal_codes(run):
    """A dedup token is left out, the last code is not where all SIDs differ without one."""
    found = page.finished(run)
    assert found.keys("codes_used/level_") and len(found.sids[0]) == 4
    ended = [
        ["<a_1>", "<b_1>", "<c_1>", "<d_0>"],
        ["<a_1>", "<b_1>", "<c_1>", "<d_1>"],
        ["<a_1>", "<b_1>", "<c_2>", "<d_0>"],
    ]
    assert page.groups(dataclasses.replace(found, sids=ended)) == [[0, 1], [2]]
    assert page.groups(dataclasses.replace(found, sids=[sid[:3] for sid in ended[1:]])) == [[0], [1]]
    unlike = [["<a_1>", "<z_0>"], ["<a_1>", "<z_1>"], ["<a_1>", "<b_2>", "<z_0>"]]
    assert page.groups(dataclasses.replace(found, sids=unlike)) == [[0, 1], [2]]


def test_codes_in_use_are_written_down_epoch_by_epoch(run):
    """The last epoch's are those of its SIDs."""
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    counts = rows[-1]["code_count/level_1"]
    assert len(counts) == 8 and sum(counts) == 40
    assert sum(c > 0 for c in counts) == rows[-1]["codes_used/level_1"]
    assert len([f for f in page.usage(page.finished(run)) if isinstance(f, charts.Picture)]) == 3


def test_runs_side_by_side(run, tmp_path):
    """z by hand, against ranks that are one better for every third user."""
    other = copy_of(run, tmp_path / "other")
    rank = np.load(run.path / "ranks-test.npy")
    better = rank.copy()
    better[1, ::3] = 0
    np.save(other.path / "ranks-test.npy", better)
    told = {m: float((better[1] < int(m.split("@")[1])).mean()) for m in ("recall@1", "recall@5", "recall@10")}
    gain = {f"ndcg@{k}": float(np.where(better[1] < k, 1 / np.log2(better[1] + 2), 0).mean()) for k in (1, 5, 10)}
    other.test.write_text(json.dumps(json.loads(run.test.read_text()) | told | gain))
    path = report.run([str(run.path), str(other.path), f"--output={tmp_path / 'both.html'}"])
    text = "".join(Elements(path.read_text()).text)
    d = (better[1] < 10).astype(float) - (rank[1] < 10)
    assert f"z\xa0{d.mean() / (d.std(ddof=1) / len(d) ** 0.5):+.1f}" in text
    assert (run.path / "report.html").is_file()


def test_runs_go_by_method_and_what_tells_them_apart(run, tmp_path):
    """The same in the title, the table, the protocol and the legends; what stands beside has a name of its own."""
    method = json.loads(run.test.read_text())["method"]
    second = copy_of(run, tmp_path / "frqud-20260101-000000")
    seeded = copy_of(run, tmp_path / "x")
    text = (seeded.path / "config.yaml").read_text()
    (seeded.path / "config.yaml").write_text(text.replace("seed: 2020", "seed: 7"))
    beside = json.loads(run.baselines.read_text())
    second.baselines.write_text(json.dumps({method: next(iter(beside.values()))}))
    for runs, want in (([run], ""), ([run, seeded], r", seed \d+"), ([second, run, seeded], ", [0-9a-f]{4}")):
        text = page.page([page.finished(r) for r in runs])
        names = re.findall(r"<h2>(.*?): training</h2>", text)
        assert len(set(names)) == len(runs) and all(re.fullmatch(re.escape(method) + want, name) for name in names)
        assert f"<h1>tiny: {', '.join(names)}</h1>" in text
        for name in names:
            assert f"<tr><td>{name}</td>" in text and f"<th class=text>{name}</th>" in text
            assert len(runs) == 1 or f"</svg> {name}</span>" in text
        rows = re.findall(r"<tr><td>(.*?)</td>", text)
        assert len(rows) == len(set(rows)) and all(r.path.name in text for r in runs)


@pytest.mark.parametrize(("names", "want"), [
    (["a", "b"], ["a", "b"]), (["a", "a"], ["a, x", "a, y"]), (["a", "b", "a", "a"], ["a, 1", "b", "a, 3", "a, 4"]),
])  # fmt: skip
def test_equal_names_are_told_apart(names, want):
    assert told_apart(names, ["same"] * len(names), ["x", "y", "y", "y"][: len(names)]) == want


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.yaml").write_text(
            (f / "config.yaml").read_text().replace("mask_seen: false", "mask_seen: true")),
         "mask_seen: False for .* but True for .*cannot be compared"),
        (lambda f: write_checkpoint(
            f / "best_model.pth", torch.load(f / "best_model.pth", weights_only=True) | {"split": "else"}),
         "was tested on other interactions"),
        (lambda f: (f / "test.json").unlink(), "holds no test.json"),
        (lambda f: (f / "tiny.index.json").write_text("{}x"), "not readable as JSON"),
        (lambda f: (f / "tiny.index.json").write_text('{"7": ["<a_1>"]}'), "other items"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(run, tmp_path, change, message):
    copy = copy_of(run, tmp_path / "other")
    change(copy.path)
    with pytest.raises(Problem, match=message):
        report.run([str(run.path), str(copy.path), f"--output={tmp_path / 'both.html'}"])
    assert not (tmp_path / "both.html").exists()


@pytest.mark.parametrize(
    ("words", "message"), [([], "name the folder"), (["nowhere"], "no such run folder"), (["--x=1"], "unknown option"),
                           (["a", "--output=x.pth"], "ends in .html")],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line(words, message):
    with pytest.raises(Problem, match=message):
        report.run(words)


def test_a_report_that_fails_does_not_fail_the_run(run, tmp_path, caplog):
    copy = copy_of(run, tmp_path / "other")
    copy.best.write_bytes(b"damaged")
    (copy.path / "report.html").unlink()
    page.write(copy)
    assert not (copy.path / "report.html").exists()


def test_a_picture_is_what_was_drawn():
    """Decoded by the format's own rules (RFC 2083), filter 0."""
    pixel = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    data, at, found = charts.png(pixel), 8, {}
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        found[kind] = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + found[kind])
        at += 12 + size
    rows = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(3, 16)
    assert struct.unpack(">II", found[b"IHDR"][:8]) == (5, 3)
    assert (rows[:, 1:].reshape(3, 5, 3) == pixel).all() and not rows[:, 0].any()


def test_curves_leave_out_what_cannot_be_drawn():
    nan, inf = float("nan"), float("inf")
    assert charts.lines("t", {"a": [(0, nan)], "b": []}) is None
    text = charts.lines("t", {"a": [(0, 1.0), (1, nan), (2, -1.0), (3, inf), (4, 10.0)]}, log=True).html()
    assert re.findall(r'points="([^"]*)"', text)[0].count(",") == 2
    low, high = (float(p.split(",")[1]) for p in re.findall(r'points="([^"]*)"', text)[0].split())
    assert (low, high) == (charts.HEIGHT - charts.BOTTOM, charts.TOP)


def test_no_two_curves_are_drawn_alike():
    """Eleven of them, with their names beside them; on white, with figures on both axes."""
    series = {f"row {i}": [(0, 0.1), (30, 0.2 + i)] for i in range(11)}
    root = ElementTree.fromstring(charts.lines("validation", series, x_label="minutes").svg())
    space = "{http://www.w3.org/2000/svg}"
    drawn = [(e.get("stroke"), e.get("stroke-dasharray")) for e in root.iter(f"{space}polyline")]
    named = [(e.get("stroke"), e.get("stroke-dasharray")) for e in root.iter(f"{space}line") if e.get("stroke")]
    assert len(set(drawn)) == 11 and drawn == named
    assert next(root.iter(f"{space}rect")).get("fill") == "white"
    said = [e.text for e in root.iter(f"{space}text")]
    assert {"minutes", "validation", *series, "10", "20", "30"} <= set(said)
    wide, high = float(root.get("width")), float(root.get("height"))
    texts = [(float(e.get("x")), float(e.get("y")), len(e.text)) for e in root.iter(f"{space}text")]
    assert all(x >= 0 and x + 5 * size * (x > charts.WIDTH) <= wide and -22 <= y <= high - 22 for x, y, size in texts)


def test_names_are_text_wherever_they_are_drawn():
    """On a page and in each kind of file, which is sound as XML and says every name and title."""
    series = {BAD: [(0, 1.0), (1, 2.0)], "b": [(0, 2.0)]}
    figure = charts.lines(BAD, series)
    assert "<script" not in figure.html() and figure.inside in figure.svg()
    for text, times in (
        (figure.svg(), 2),
        (charts.lines(BAD, series, x_label=BAD).svg(), 3),
        (charts.scatter(BAD, {BAD: (1.0, 2.0)}, BAD).svg(), 3),
        (charts.intervals(BAD, {BAD: charts.Interval(0.1, 0.01, [0.1])}), 2),
    ):
        said = [e.text for e in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
        assert said.count(BAD.replace("\x07", "")) == times


def test_the_figures_as_files(run, tmp_path):
    """Each is sound by itself, has the points of the page, and loads nothing."""
    out = report.run([str(run.path), "--pictures", str(tmp_path / "pictures")])
    files = {p.name: p.read_bytes() for p in out.iterdir()}
    on_page = page.page([page.finished(run)])
    curves = {name: ElementTree.fromstring(content) for name, content in files.items() if name.endswith(".svg")}
    assert {
        "validation.svg",
        "perplexity.svg",
        "gradient-of-the-recommendation-loss-at-codebook-1.svg",
    } <= curves.keys()
    for root in curves.values():
        lines = root.findall("{http://www.w3.org/2000/svg}polyline")
        assert lines and all(line.get("points") in on_page for line in lines)
        assert not {e.tag.split("}")[1] for e in root.iter()} & {"image", "script", "a", "use"}
    texts = [e.text for e in curves["perplexity.svg"].iter() if e.tag.endswith("text")]
    assert "perplexity" in texts and [t for t in texts if t.startswith("level")] == ["level 1", "level 2", "level 3"]
    assert files["items-of-each-code-level-1.png"][:4] == b"\x89PNG"


def test_pictures_of_one_run_alone(run, tmp_path):
    (tmp_path / "file").write_text("")
    for words, message in (
        ([str(run.path), str(run.path)], "takes the figures of one run"),
        ([str(run.path), "--output=x.html"], "and no --output"),
        ([str(run.path), f"--pictures={tmp_path / 'file' / 'x'}"], "x: cannot be written .* another folder"),
    ):
        more = [] if any("--pictures" in w for w in words) else [f"--pictures={tmp_path / 'p'}"]
        with pytest.raises(Problem, match=message):
            report.run([*words, *more])
