"""Downloads from an endpoint on this machine that speaks as the hub does: cut off, resumed, damaged, absent."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from readers.hub import download
from utils import Problem

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "Beauty/beauty.test.jsonl": b'{"inter_history": ["a"]}\n' * 3000,
    "README.md": b"# Data\n",
    "big.npy": bytes(range(256)) * 400,
}
LARGE = ("big.npy",)


class Hub(BaseHTTPRequestHandler):
    """What the client asks for: the repository's files with sizes and hashes, heads, contents from an offset."""

    protocol_version = "HTTP/1.1"
    served: dict = {}
    asked: list = []
    cut = None  # serve so many bytes of big.npy, then hang up

    def log_message(self, *args):
        pass

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        parts = self.path.strip("/").split("/")
        if parts[0] == "api":
            self.api(parts)
        else:
            self.content(self.path.partition(f"/resolve/{COMMIT}/")[2])

    do_HEAD = do_GET

    def api(self, parts):
        if parts[1] != "datasets":
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
            return
        if "nothing" in self.path:
            self.answer(401, {"X-Error-Code": "RepoNotFound"})
            return
        siblings = []
        for name, content in FILES.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(
                {"rfilename": name, "size": len(content), "blobId": blob, **({"lfs": lfs} if name in LARGE else {})}
            )
        body = {"id": "junchenfu/data", "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def content(self, name):
        body = self.served.get(name, FILES[name])
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        Hub.asked.append((self.command, name, begin))
        headers = {
            "ETag": f'"{hashlib.sha256(FILES[name]).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        cut = Hub.cut if name == "big.npy" and self.command == "GET" else None
        rest = body[begin:]
        self.answer(206 if begin else 200, headers | {"Content-Length": str(len(rest))}, rest[:cut])
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def hub(monkeypatch):
    Hub.served, Hub.asked, Hub.cut = {}, [], None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def whole(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts
    }


def test_all_files_come_and_are_not_fetched_again(hub, tmp_path):
    download("data", tmp_path, hub)
    assert whole(tmp_path) == FILES
    Hub.asked.clear()
    download("data", tmp_path, hub)
    assert Hub.asked == []
    (tmp_path / "README.md").write_bytes(b"# Date\n")  # as long, but another
    download("data", tmp_path, hub)
    assert whole(tmp_path) == FILES
    assert {name for _, name, _ in Hub.asked} == {"README.md"}


def test_a_connection_that_breaks_goes_on_where_it_broke(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: setattr(Hub, "cut", None))
    Hub.cut = 20_000
    download("data", tmp_path, hub)
    assert whole(tmp_path) == FILES
    assert ("GET", "big.npy", 16_384) in Hub.asked  # behind the whole pieces that had come


def test_a_download_that_was_stopped_keeps_its_whole_files(hub, tmp_path, monkeypatch):
    """Ctrl-C comes while the client waits for another attempt."""

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("huggingface_hub.file_download.time.sleep", interrupted)
        Hub.cut = 20_000
        download("data", tmp_path, hub)
    assert set(whole(tmp_path)) == {"Beauty/beauty.test.jsonl", "README.md"}
    Hub.cut, Hub.asked = None, []
    download("data", tmp_path, hub)
    assert whole(tmp_path) == FILES
    assert {name for _, name, _ in Hub.asked} == {"big.npy"}


def test_a_damaged_file_is_removed(hub, tmp_path):
    Hub.served["big.npy"] = FILES["big.npy"][::-1]
    with pytest.raises(Problem, match=r"big.npy: another SHA-256; it was removed, the same command fetches it again"):
        download("data", tmp_path, hub)
    assert "big.npy" not in whole(tmp_path)


def test_what_is_not_there_is_one_line(hub, tmp_path):
    with pytest.raises(Problem, match=r"junchenfu/nothing: no such repository on the hub"):
        download("nothing", tmp_path / "x", hub)
    dead = "http://127.0.0.1:9"
    with pytest.raises(Problem, match=r"--repo-type dataset --local-dir .*x` and bring that folder here as"):
        download("diger-processed-data", tmp_path / "x", dead)
    assert not (tmp_path / "x").exists()
