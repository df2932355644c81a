"""Published data sets over a local server of HTTP: fetched, continued, damaged, absent, prepared, compared."""

import hashlib
import io
import json
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from test_prepare import ROWS, USERS, amazon_2014, amazon_2018, items, movielens_100k, sequences

from readers import fetch
from scripts import prepare_data
from utils import Problem


class Site(BaseHTTPRequestHandler):
    """Files by name, from an offset where `ranges`; the first answer ends after `cut` bytes."""

    protocol_version = "HTTP/1.1"

    def __init__(self, state, *args):
        self.state = state
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_GET(self):
        name, asked = self.path.rpartition("/")[2], self.headers.get("Range")
        self.state.setdefault("asked", []).append((name, asked))
        content = self.state["files"].get(name)
        version = f'"{hashlib.md5(content or b"").hexdigest()}"'
        same = asked and self.state.get("ranges", True) and self.headers["If-Range"] == version
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if same else 0
        past = begin and begin >= len(content or b"")
        self.send_response(404 if content is None else 416 if past else 206 if begin else 200)
        body = (content or b"")[begin:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", version)
        self.end_headers()
        cut = self.state.pop("cut", None)
        self.wfile.write(body[:cut])
        self.close_connection = cut is not None


@pytest.fixture
def site(monkeypatch):
    state = {"files": {}}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, state))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    moved = {
        name: replace(source, files=tuple(f"{address}/{f.rpartition('/')[2]}" for f in source.files), counts=None)
        for name, source in fetch.PUBLISHED.items()
    }
    monkeypatch.setattr(fetch, "PUBLISHED", moved)
    yield state | {"address": address, "published": moved, "state": state}
    server.shutdown()


def letter(root):
    numbers = {u: [int(i[-1] == "Q") + 2 * int(i[-1] == "R") for _, i, *_ in ROWS[:4]] for u in ("0", "1")}
    (root / "Yelp.inter.json").write_text(json.dumps(numbers))
    (root / "Yelp.item.json").write_text(json.dumps({str(i): {"title": f"Shop {i}"} for i in range(3)}))


def offered(site, folder, name, make):
    """Put the files that `make` writes on the site under the names that the data set has there; zipped for a .zip."""
    folder.mkdir()
    make(folder)
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    wanted = [f.rpartition("/")[2] for f in site["published"][name].files]
    if wanted[0].endswith(".zip"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for file, content in files.items():
                archive.writestr(f"{name}/{file}", content)
        files = {wanted[0]: buffer.getvalue()}
    else:
        there = {("meta" in n or "item.json" in n): content for n, content in files.items()}
        files = {n: there["meta" in n or "item.json" in n] for n in wanted}
    site["state"]["files"] = files


def known(monkeypatch, site, name, **facts):
    monkeypatch.setitem(site["published"], name, replace(site["published"][name], **facts))


@pytest.mark.parametrize(
    ("name", "make"),
    [("beauty", amazon_2014), ("sports", amazon_2014), ("toys", amazon_2014), ("scientific", amazon_2018),
     ("instruments", letter), ("yelp", letter), ("ml-100k", movielens_100k)],
)  # fmt: skip
def test_one_command_fetches_and_prepares(site, tmp_path, monkeypatch, capsys, name, make):
    offered(site, tmp_path / "source", name, make)
    known(monkeypatch, site, name, md5=None)
    out = tmp_path / "data" / name
    prepare_data.run([f"--fetch={name}", f"--out={out}", "--k_core=0"])
    if make is letter:
        assert {row["title"] for row in items(out).values()} == {"Shop 0", "Shop 1", "Shop 2"}
    else:
        assert set(sequences(out)) == set(USERS) and len(items(out)) == 4
    # what came is used again, and compared with what is expected
    statistics = json.loads((out / f"{name}.card.json").read_text())["statistics"]
    counts = tuple(statistics[k] for k in ("users", "items", "interactions"))
    asked = len(site["state"]["asked"])
    known(monkeypatch, site, name, counts=counts, degrees=statistics["degrees"], md5=None)
    out.rename(tmp_path / "aside")
    prepare_data.run([f"--fetch={name}", f"--out={out}", "--k_core=0"])
    assert len(site["state"]["asked"]) == asked
    assert f"{name}: as expected, counts, hash" in "".join(capsys.readouterr())
    known(monkeypatch, site, name, counts=(1, 2, 3), degrees=None, md5=None)
    fetch.compare(name, counts, "x")
    assert f"{name}: expected of counts (1, 2, 3), found {counts}" in "".join(capsys.readouterr())


@pytest.mark.parametrize(("ranges", "changed"), [(True, False), (False, False), (True, True)])
def test_a_download_that_broke_goes_on_or_begins_anew_where_the_file_is_another(site, tmp_path, ranges, changed):
    content = np.random.default_rng(0).bytes(5000)
    site["state"] |= {"files": {"big.gz": content}, "cut": 2000, "ranges": ranges}
    with pytest.raises(Problem, match=r"big\.gz: ended after 2,000 of 5,000 bytes|could not be fetched"):
        fetch.download(f"{site['address']}/big.gz", tmp_path / "big.gz")
    assert not (tmp_path / "big.gz").exists()
    if changed:
        content = site["state"]["files"]["big.gz"] = content[::-1]
    fetch.download(f"{site['address']}/big.gz", tmp_path / "big.gz", hashlib.md5(content).hexdigest())
    assert (tmp_path / "big.gz").read_bytes() == content and [p.name for p in tmp_path.iterdir()] == ["big.gz"]
    assert site["state"]["asked"][1] == ("big.gz", "bytes=2000-")


def test_a_file_that_is_not_the_published_one_is_removed(site, tmp_path):
    site["state"]["files"] = {"a.zip": b"another"}
    with pytest.raises(Problem, match=r"a\.zip: not the published file .* it was removed"):
        fetch.download(f"{site['address']}/a.zip", tmp_path / "a.zip", "0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_line_says_where_to_put_the_file(site, tmp_path):
    with pytest.raises(Problem, match=r"reviews_Beauty_5.*status 404.*put it here as .*beauty-published/reviews_Beaut"):
        prepare_data.run(["--fetch=beauty", f"--out={tmp_path / 'beauty'}"])
    with pytest.raises(Problem, match=r"--fetch: 'beuaty' is not one of .*did you mean 'beauty'"):
        prepare_data.run(["--fetch=beuaty"])
    with pytest.raises(Problem, match=r"--fetch=beauty: takes no SOURCE beside it; drop clicks.csv"):
        prepare_data.run(["clicks.csv", "--fetch=beauty"])


def test_a_damaged_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"no archive")
    with pytest.raises(Problem, match=r"a\.zip: not a whole archive .*; remove it and fetch it again"):
        fetch.unpack(tmp_path / "a.zip", tmp_path / "out")


def test_the_hash_depends_on_who_meets_what_not_on_order_or_names():
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 30, 200), rng.integers(0, 20, 200)
    shuffled, names = rng.permutation(200), rng.permutation(30)
    assert fetch.degrees(user, item) == fetch.degrees(names[user][shuffled], item[shuffled])
    other = item.copy()
    other[np.flatnonzero(other != other[0])[0]] = other[0]
    assert fetch.degrees(user, item) != fetch.degrees(user, other)
