"""The server: in process through its own client, and in a real browser where there is one."""

import asyncio
import json
import re
import shutil
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="scripts/serve.py needs fastapi, uvicorn and, for its tests, httpx")

import torch
from starlette.testclient import TestClient

from scripts import serve
from serve.app import Limits, create_app
from serve.loaded import load
from utils import Problem

LIMITS = Limits(k=20, history=8, body=2000, seconds=5)
ATTACK = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def doors(trained):
    """Open clients by kind of model."""
    clients = {}
    for name, run in trained[2].items():
        loaded = load(run.best, ["--num_beams=20"] if name != "sasrec" else [])
        loaded.titles[2] = ATTACK
        clients[name] = TestClient(create_app(loaded, LIMITS, ["testserver"]))
        clients[name].__enter__()
        clients[name].loaded = loaded
    yield clients
    for client in clients.values():
        client.__exit__(None, None, None)


@pytest.mark.parametrize("name", ["frqud", "two_stage", "sasrec"])
def test_recommendations_are_the_models(doors, name):
    client = doors[name]
    for question, options in (
        ({"history": ["i1", "i2"], "k": 5}, {}),
        ({"history": ["i3"], "k": 20}, {}),
        ({"history": ["i3"], "allow": ["i7", "i8"], "k": 3}, {"allow": ["i7", "i8"]}),
        ({"history": ["i3"], "deny": ["i4", "i5"]}, {"deny": ["i4", "i5"]}),
        ({"history": ["i3"], "allow": ["i7"], "deny": ["i7"]}, {"allow": ["i7"], "deny": ["i7"]}),
    ):
        found = client.post("/recommend", json=question).json()["items"]
        # as one of its batch: lists of the same beams
        wanted = client.loaded.recommend([question["history"]], 20, **options)[0][: question.get("k", 10)]
        assert [(i["item_id"], i["title"]) for i in found] == [(h.item, h.title) for h in wanted]
        assert [i["score"] for i in found] == pytest.approx([h.score for h in wanted], abs=1e-5)
        assert all(("sid" in i) == (name != "sasrec") for i in found)


def test_many_at_once_are_ranked_together_and_each_gets_its_own(doors):
    """While the first is ranked the others gather."""
    client = doors["two_stage"]
    ranking = client.app.state.ranking
    before, slow = ranking.batches.copy(), ranking.loaded
    begun, gate = threading.Event(), threading.Event()

    class Slow:
        def __getattr__(self, name):
            return getattr(slow, name)

        def rank(self, *args):
            begun.set()
            assert gate.wait(60)
            return slow.rank(*args)

    ranking.loaded = Slow()
    answers = {}

    def ask(i):
        answers[i] = client.post("/recommend", json={"history": [f"i{i}"], "k": 1 + i % 5}).json()["items"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    threads[0].start()
    assert begun.wait(60)  # alone: two that wait together would be ranked together
    for t in threads[1:]:
        t.start()
    end = time.monotonic() + 60
    while ranking.queue.qsize() < 11:
        assert time.monotonic() < end, "the others never waited"
        time.sleep(0.01)
    gate.set()
    for t in threads:
        t.join()
    ranking.loaded = slow
    assert ranking.batches - before == {1: 1, 11: 1}
    for i, found in answers.items():
        wanted = slow.recommend([[f"i{i}"]], 20)[0][: 1 + i % 5]
        assert [a["item_id"] for a in found] == [h.item for h in wanted]


def test_neighbours_share_the_longest_beginnings(doors):
    client = doors["two_stage"]
    table = client.loaded.model.sids.token_NP.numpy()
    found = client.get("/similar", params={"item": "i5", "k": 20}).json()
    depth = [int(np.minimum.accumulate(row == table[5]).sum()) for row in table]
    wanted = sorted((i for i in range(40) if depth[i] and i != 5), key=lambda i: (-depth[i], i))[:20]
    assert [(i["item_id"], i["depth"]) for i in found["items"]] == [(f"i{i}", depth[i]) for i in wanted]
    assert found["item"]["sid"] == [f"{'abcd'[p]}_{t}" for p, t in enumerate(table[5])]
    assert doors["sasrec"].get("/similar?item=i5").status_code == 404


def test_items_by_title(doors):
    found = doors["sasrec"].get("/items", params={"query": "ITEM 1", "limit": 3}).json()["items"]
    assert [i["title"] for i in found] == ["Item 1", "Item 10", "Item 11"]


REFUSED = [
    ({"json": {"history": []}}, 422, "history"),
    ({"json": {"k": 3}}, 422, "history: Field required"),
    ({"json": {"history": "i1"}}, 422, "history"),
    ({"json": {"history": [1]}}, 422, "history.0"),
    ({"json": {"history": ["nope"]}}, 422, "history: item 'nope' is not in the catalogue"),
    ({"json": {"history": ["i1"] * 9}}, 422, "history: 9 items, at most 8"),
    ({"json": {"history": ["i1"], "deny": ["x"]}}, 422, "deny: item 'x'"),
    ({"json": {"history": ["i1"], "k": 0}}, 422, "k: Input should be greater"),
    ({"json": {"history": ["i1"], "k": 21}}, 422, "k: 21 is above 20"),
    ({"json": {"history": ["i1"], "k": 2.5}}, 422, "k"),
    ({"json": {"history": ["i1"], "top": 3}}, 422, "top"),
    ({"json": ["i1"]}, 422, "no JSON object with a history"),
    ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "not readable as JSON"),
    ({"content": b"\xff\xfe", "headers": {"content-type": "application/json"}}, 422, ""),
    ({"json": {"history": ["i1" * 1000]}}, 413, "longer than 2000 bytes"),
    ({"content": (b"x" * 500 for _ in range(9))}, 413, "longer than 2000 bytes"),
]


@pytest.mark.parametrize(("request_", "status", "text"), REFUSED, ids=range(len(REFUSED)))
def test_bad_requests_are_one_line(doors, request_, status, text):
    answer = doors["two_stage"].post("/recommend", **request_)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"] and text in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/similar", 422), ("/similar?item=nope", 404), ("/similar?item=i1&k=0", 422), ("/similar?item=i1&k=x", 422),
     ("/nowhere", 404), ("/recommend", 405), ("/docs", 404), ("/items?query=" + "x" * 201, 422),
     ("/items?limit=999999999", 200), ("/../../etc/passwd", 404)],
)  # fmt: skip
def test_bad_paths(doors, path, status):
    answer = doors["two_stage"].get(path)
    assert answer.status_code == status and (status == 200 or list(answer.json()) == ["error"])
    assert len(answer.json().get("items", [])) <= 20
    assert "?" not in path or status != 422 or re.match("item|k|query", answer.json()["error"])


def test_other_names_of_the_host_are_refused(doors):
    assert doors["sasrec"].get("/health", headers={"host": "evil.example"}).status_code == 400


def test_health_and_metrics(doors):
    client = doors["sasrec"]
    health = client.get("/health").json()
    assert health == {"status": "ok", "items": 40, "method": "sasrec", "sids": False}

    def count():
        text = client.get("/metrics").text
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {k: float(v) for k, v in lines.items()}

    before = count()
    for _ in range(3):
        client.post("/recommend", json={"history": ["i1"]})
    client.get("/nowhere/else")
    after = count()
    name = 'diger_requests_total{path="/recommend",status="200"}'
    assert after[name] - before.get(name, 0) == 3
    assert 'diger_requests_total{path="other",status="404"}' in after
    assert after['diger_request_seconds_bucket{le="+Inf"}'] == after["diger_request_seconds_count"]
    assert after["diger_ranked_total"] - before["diger_ranked_total"] == 3


def test_the_page_has_a_strict_policy_and_loads_nothing(doors):
    answer = doors["sasrec"].get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2
    assert "http" not in answer.text.replace("http-equiv", "") and "innerHTML" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_what_takes_too_long_or_waits_too_long_is_told(trained):
    loaded = load(trained[2]["sasrec"].best)

    class Stuck:
        def __getattr__(self, name):
            return getattr(loaded, name)

        def rank(self, *args):
            time.sleep(0.5)
            return loaded.rank(*args)

    with TestClient(create_app(loaded, replace(LIMITS, seconds=0.1, waiting=2))) as client:
        client.app.state.ranking.loaded = Stuck()
        assert client.post("/recommend", json={"history": ["i1"]}).status_code == 504
        statuses = []

        def ask():
            statuses.append(client.post("/recommend", json={"history": ["i1"]}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert 503 in statuses and set(statuses) <= {503, 504}


def test_a_failing_model_is_one_line(trained):
    loaded = load(trained[2]["sasrec"].best)
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(float("nan"))
    with TestClient(create_app(loaded, LIMITS), raise_server_exceptions=False) as client:
        answer = client.post("/recommend", json={"history": ["i1"]})
        assert answer.status_code == 500 and list(answer.json()) == ["error"]
        assert client.get("/health").status_code == 200


def test_a_body_that_does_not_come_is_given_up(trained):
    """Straight at the application: a client that sends half of its body."""
    app = create_app(load(trained[2]["sasrec"].best), replace(LIMITS, seconds=0.05))
    sent, parts = [], [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive():
        if parts:
            return parts.pop()
        return await asyncio.sleep(10)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/recommend", "headers": [], "query_string": b""}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "name one checkpoint"), (["a", "b"], "name one checkpoint"), (["a", "--port=x"], "--port"),
     (["a", "--port=99999"], "above 65535"), (["a", "--max_k=0"], "--max_k"), (["nowhere.pth"], "no such checkpoint"),
     (["BEST", "--num_beam=3"], "did you mean 'num_beams'"), (["BEST", "--host=300.1.1.1"], "cannot listen there"),
     (["BEST", "--port=TAKEN"], "cannot listen there")],
)  # fmt: skip
def test_a_wrong_command_is_one_line(trained, words, message):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = {"BEST": str(trained[2]["two_stage"].best), "--port=TAKEN": f"--port={taken.getsockname()[1]}"}
        with pytest.raises(Problem, match=message):
            serve.serve([names.get(w, w) for w in words])


def test_without_its_packages_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Problem, match=r"needs fastapi and uvicorn; pip install fastapi uvicorn"):
        serve.serve(["best_model.pth"])


@pytest.mark.slow
def test_in_a_browser(trained, tmp_path):
    """A title is picked, recommendations and neighbours appear, markup in a title stays text."""
    chromium = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    from browser import Browser, served

    loaded = load(trained[2]["two_stage"].best)
    loaded.titles[2] = ATTACK
    with served(create_app(loaded, LIMITS)) as address, Browser(chromium, tmp_path) as page:
        page.open(address)
        page.wait("document.getElementById('model').textContent.includes('40 items')")
        page.run("q = document.getElementById('query'); q.value = 'img src'; q.dispatchEvent(new Event('input'))")
        page.wait("document.querySelectorAll('#found li').length == 1")
        page.run("document.querySelector('#found li').click(); document.getElementById('ask').click()")
        page.wait("document.querySelectorAll('#list li').length == 20")
        page.wait("document.querySelectorAll('#neighbours li').length > 0")
        wanted = loaded.recommend([["i2"]], 20)[0]
        assert page.run("document.querySelector('#list .id').textContent") == wanted[0].item
        assert page.run("document.querySelectorAll('img').length") == 0
        assert page.run("document.querySelector('#picked li').firstChild.textContent").strip() == ATTACK
        assert page.run("document.title") == "DIGER"
        color = "getComputedStyle(document.querySelector('.sid .level-0')).backgroundColor"
        assert page.run(color) == "rgb(0, 114, 178)"
        assert page.problems == []
        page.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000


def test_json_of_an_answer_is_strict(doors):
    """No NaN or Infinity, which browsers cannot read."""
    text = doors["two_stage"].post("/recommend", json={"history": ["i1"], "allow": ["i1", "i2"], "k": 20}).text
    json.loads(text, parse_constant=pytest.fail)
