"""Every source in the layout in which it is published, every layout back, and every way for a file to be wrong."""

import gzip
import json

import numpy as np
import polars as pl
import pytest
import yaml
from helpers import SHARED

from readers.dataset import title
from readers.layouts import read_dataset
from readers.prepare import Events, PrepareOptions, kept_of_repeats
from readers.raw.kinds import WRITERS
from readers.splits import DataOptions
from scripts import prepare_data, run
from utils import Problem

USERS, ITEMS = (
    ["AUSER00000A1", "AUSER00000B2", "AUSER00000C3"],
    ["B00000000P", "B00000000Q", "B00000000R", "B00000000S"],
)
TITLES = {i: f"The {i[-1]}, part “{n}”" for n, i in enumerate(ITEMS)}
# (user, item, rating, time) as a log brings them: users mixed, two rows at one time, one row twice
LOG = [
    (0, 1, 5, 1000), (1, 0, 4, 900), (0, 0, 3, 1000), (2, 2, 5, 1100), (1, 1, 1, 950), (0, 2, 5, 800),
    (1, 2, 4, 990), (0, 3, 4, 1200), (2, 0, 2, 1050), (2, 1, 5, 1300), (1, 3, 5, 2000), (2, 3, 5, 1301),
    (0, 3, 4, 1200),
]  # fmt: skip
ROWS = [(USERS[u], ITEMS[i], r, t) for u, i, r, t in LOG]
SORTED = {USERS[0]: "RQPS", USERS[1]: "PQRS", USERS[2]: "PRQS"}  # by hand: time, then the order of the log


def prepare(source, out, *options):
    core = [] if any("k_core" in o for o in options) else ["--k_core=0"]
    prepare_data.run([str(source), "--out", str(out), *core, *options])
    return out


def sequences(folder):
    """User -> last letters of the items in their order, of a prepared folder."""
    found = {}
    for line in (folder / f"{folder.name}.inter").read_text().splitlines()[1:]:
        user, item = line.split("\t")[:2]
        found[user] = found.get(user, "") + item[-1]
    return found


def items(folder):
    lines = (folder / f"{folder.name}.items.jsonl").read_text().splitlines()
    return {row.pop("item_id"): row for row in map(json.loads, lines)}


def lines(*rows):
    return "".join(json.dumps(r) + "\n" for r in rows)


def clock(seconds):
    return f"22:{seconds // 60:02}:{seconds % 60:02}"


def zipped(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


def table(path, names, rows, sep=","):
    cells = [[f'"{c}"' if sep == "," and sep in str(c) else str(c) for c in row] for row in rows]
    path.write_text("".join(sep.join(row) + "\n" for row in [*([names] if names else []), *cells]), encoding="utf-8")


# ---------------------------------------------------------------- sources


def amazon_2014(root):
    zipped(root / "reviews_Beauty_5.json.gz", lines(*(
        {"reviewerID": u, "asin": i, "reviewerName": None, "helpful": [0, 1], "overall": float(r), "unixReviewTime": t}
        for u, i, r, t in ROWS)))  # fmt: skip
    metas = (
        {"asin": i, "title": TITLES[i].replace(",", " &amp;"), "categories": [["Beauty", "Hair"]], "price": 1.5}
        for i in ITEMS
    )
    zipped(root / "meta_Beauty.json.gz", "".join(f"{m!r}\n" for m in metas))
    return {"title": TITLES[ITEMS[0]].replace(",", " &"), "categories": "Beauty, Hair"}


def amazon_2018(root):
    zipped(root / "Beauty_5.json.gz", lines(*(
        {"overall": float(r), "reviewerID": u, "asin": i, "unixReviewTime": t, "style": {"Size:": "1"}}
        for u, i, r, t in ROWS)))  # fmt: skip
    metas = [
        {"category": ["Beauty"], "description": ["Good.", "Very."], "title": TITLES[i], "asin": i, "brand": ""}
        for i in ITEMS
    ]
    zipped(root / "meta_Beauty.json.gz", lines(*metas, metas[0]))  # published ones repeat items
    return {"title": TITLES[ITEMS[0]], "categories": "Beauty", "description": "Good. Very."}


def amazon_2018_ratings(root):
    table(root / "Beauty.csv", [], [(i, u, float(r), t) for u, i, r, t in ROWS])
    return {}


def amazon_2014_ratings(root):
    table(root / "ratings_Beauty.csv", [], [(u, i, float(r), t) for u, i, r, t in ROWS])
    return {}


def amazon_2023(root):
    zipped(root / "Beauty.jsonl.gz", lines(*(
        {"rating": float(r), "title": "Nice", "asin": "V", "parent_asin": i, "user_id": u, "timestamp": t * 1000}
        for u, i, r, t in ROWS)))  # fmt: skip
    zipped(root / "meta_Beauty.jsonl.gz", lines(*(
        {"title": TITLES[i], "features": ["Soft"], "description": [], "store": "Shop", "parent_asin": i}
        for i in ITEMS)))  # fmt: skip
    return {"title": TITLES[ITEMS[0]], "features": "Soft", "brand": "Shop"}


def amazon_2023_parquet(root):
    (root / "raw_review_Beauty").mkdir()
    (root / "raw_meta_Beauty").mkdir()
    rows = [{"rating": float(r), "parent_asin": i, "user_id": u, "timestamp": t * 1000} for u, i, r, t in ROWS]
    pl.DataFrame(rows).write_parquet(root / "raw_review_Beauty" / "full-00000-of-00001.parquet")
    metas = [{"title": TITLES[i], "categories": ["A", "B"], "parent_asin": i} for i in ITEMS]
    pl.DataFrame(metas).write_parquet(root / "raw_meta_Beauty" / "full-00000-of-00001.parquet")
    return {"title": TITLES[ITEMS[0]], "categories": "A, B"}


def yelp(root):
    (root / "yelp_academic_dataset_review.json").write_text(lines(*(
        {"review_id": str(n), "user_id": u, "business_id": i, "stars": float(r), "date": f"2018-07-07 {clock(t)}"}
        for n, (u, i, r, t) in enumerate(ROWS))))  # fmt: skip
    (root / "yelp_academic_dataset_business.json").write_text(lines(*(
        {"business_id": i, "name": TITLES[i], "categories": "Food, Pizza", "city": "Reno", "state": "NV"}
        for i in ITEMS)))  # fmt: skip
    return {"title": TITLES[ITEMS[0]], "categories": "Food, Pizza", "city": "Reno", "state": "NV"}


def movielens_100k(root):
    table(root / "u.data", [], ROWS, "\t")
    cells = [[i, f"Amélie {i[-1]}", "01-Jan-1995", "", "http://x", *"0001010000000000000"] for i in ITEMS]
    (root / "u.item").write_text("".join("|".join(c) + "\n" for c in cells), encoding="latin-1")
    return {"title": "Amélie P", "categories": "Animation, Comedy"}


def movielens_1m(root):
    table(root / "ratings.dat", [], ROWS, "::")
    (root / "movies.dat").write_text("".join(f"{i}::Amélie: {i[-1]}::Drama|War\n" for i in ITEMS), encoding="latin-1")
    (root / "README").write_text("about")
    return {"title": "Amélie: P", "categories": "Drama, War"}


def movielens_10m(root):
    movielens_1m(root)
    (root / "movies.dat").write_text("".join(f"{i}::Amélie: {i[-1]}::Drama|War\n" for i in ITEMS), encoding="utf-8")
    return {"title": "Amélie: P", "categories": "Drama, War"}


def movielens_20m(root):
    table(
        root / "ratings.csv", ["userId", "movieId", "rating", "timestamp"], [(u, i, r + 0.5, t) for u, i, r, t in ROWS]
    )
    table(root / "movies.csv", ["movieId", "title", "genres"], [(i, TITLES[i], "Drama|War") for i in ITEMS])
    table(root / "tags.csv", ["userId", "movieId", "tag", "timestamp"], [])
    return {"title": TITLES[ITEMS[0]], "categories": "Drama, War"}


def clicks_csv(root):
    table(root / "clicks.csv", ["when", "User ID", "note", "product_id", "stars"],
          [(f"2024-05-01T{clock(t)}Z", u, "a,b", i, r) for u, i, r, t in ROWS])  # fmt: skip
    table(root / "items.csv", ["product_id", "name", "colour"], [(i, TITLES[i], "red") for i in ITEMS])
    return {"title": TITLES[ITEMS[0]], "colour": "red"}, "--time_col=when"


def clicks_parquet(root):
    times = pl.from_epoch(pl.Series([t for *_, t in ROWS]), time_unit="s")
    frame = pl.DataFrame({"customer_id": [r[0] for r in ROWS], "sku": [r[1] for r in ROWS], "ts": times})
    (root / "clicks").mkdir()
    for part in range(2):  # in pieces, as a store of data writes them
        frame[part * 7 : part * 7 + 7].write_parquet(root / "clicks" / f"part-{part}.parquet")
    pl.DataFrame({"sku": ITEMS, "title": list(TITLES.values()), "tags": [["a", "b"]] * 4}).write_parquet(
        root / "items.parquet"
    )
    return {"title": TITLES[ITEMS[0]], "tags": "a, b"}, "--items", str(root / "items.parquet")


def clicks_tsv(root):
    zipped(
        root / "clicks.tsv.gz",
        "".join("\t".join(map(str, r)) + "\n" for r in [("user", "item", "rating", "time"), *ROWS]),
    )
    return {}


SOURCES = [amazon_2014, amazon_2018, amazon_2018_ratings, amazon_2014_ratings, amazon_2023, amazon_2023_parquet, yelp,
           movielens_100k, movielens_1m, movielens_10m, movielens_20m, clicks_csv, clicks_parquet,
           clicks_tsv]  # fmt: skip


@pytest.mark.parametrize("make", SOURCES)
def test_a_source_as_published(make, tmp_path):
    root = tmp_path / "source"
    root.mkdir()
    found = make(root)
    text, *options = found if isinstance(found, tuple) else [found]
    folder = prepare(root / "clicks" if make is clicks_parquet else root, tmp_path / "shop", *options)
    assert sequences(folder) == SORTED
    texts = items(folder)
    assert list(texts) == [ITEMS["PQRS".index(c)] for c in "RQPS"]  # as they first occur
    assert texts[ITEMS[0]] == text
    card = json.loads((folder / "shop.card.json").read_text())
    assert card["source"]["kind"] == make.__name__.split("_")[0].replace("clicks", "table")
    assert card["steps"]["read"]["interactions"] == 13
    assert card["statistics"]["interactions"] == 12
    assert card["texts"]["with"] == (4 if text else 0)
    assert card["split"] == {"kind": "leave_one_out", "users_of_fewer_than_3": 0, "train": 3, "valid": 3, "test": 3}


def yambda(root):
    """Likes beside plays, the audio's embeddings two folders above, none of item S."""
    (root / "flat" / "50m").mkdir(parents=True)
    likes = [{"uid": u, "timestamp": t * 864, "item_id": i, "is_organic": 1} for u, i, _, t in LOG]
    plays = [row | {"played_ratio_pct": 50, "track_length_seconds": 200} for row in likes]
    for name, rows in (("likes", likes), ("listens", plays), ("multi_event", [r | {"event_type": "x"} for r in plays])):
        pl.DataFrame(rows).write_parquet(root / "flat" / "50m" / f"{name}.parquet")
    embed = [[float(i), 1.0] for i in (2, 9, 0, 1)]
    pl.DataFrame({"item_id": [2, 9, 0, 1], "embed": embed, "normalized_embed": embed}).write_parquet(
        root / "embeddings.parquet"
    )
    return root


def vk_lsvd(root):
    """A row an exposure, in order of time in files of a week; only likes count; none of item S has an embedding."""
    feedback = {"place": 0, "platform": 0, "agent": 0, "timespent": 9}
    rows = [{"user_id": u, "item_id": i, **feedback, "like": True} for u, i, _, t in sorted(LOG, key=lambda r: r[3])]
    weeks = {"train/week_09": rows[:4], "train/week_10": rows[4:10], "validation/week_11": rows[10:]}
    for name, part in weeks.items():
        (root / "subsamples" / "ur0.1" / name).parent.mkdir(parents=True, exist_ok=True)
        passed = [part[0] | {"item_id": 7, "like": False}, *part]
        pl.DataFrame(passed).write_parquet(root / "subsamples" / "ur0.1" / f"{name}.parquet")
    (root / "metadata").mkdir()
    np.savez(root / "metadata" / "item_embeddings.npz", item_id=np.array([2, 9, 0, 1], np.uint32),
             embedding=np.array([[2, 1], [9, 1], [0, 1], [1, 1]], np.float16))  # fmt: skip
    return root


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_the_last_days_in_any_unit(unit, tmp_path):
    """Times since 1970 in seconds, milli-, micro- or nanoseconds; the last two of ten days hold the last two clicks."""
    (tmp_path / "source").mkdir()
    rows = [(f"u{u}", f"i{d}", (1_700_000_000 + d * 86_400) * unit) for d in range(10) for u in range(2)]
    table(tmp_path / "source" / "clicks.csv", ["user_id", "item_id", "timestamp"], rows)
    options = ["--split=time", "--test_days=1.5", "--k_core=0"]
    folder = prepare(tmp_path / "source" / "clicks.csv", tmp_path / "shop", *options)
    preset = yaml.safe_load((folder / "shop.yaml").read_text())
    assert 0.75 < preset["time_quantile"] < 0.85


@pytest.mark.parametrize("make", [yambda, vk_lsvd])
def test_event_logs_with_embeddings_as_published(make, tmp_path):
    """By hand: what has no embedding goes, the others' vectors lie in the order of the items, the last week is tested.

    The last seven days begin at the row of time 1300. Before it item P occurs three times, Q twice, R three times.
    """
    options = ["--split=time", "--test_days=7", "--duplicates=exact"]
    folder = prepare(make(tmp_path / "source"), tmp_path / "shop", *options)
    assert sequences(folder) == {"0": "210", "1": "012", "2": "021"}
    emb = np.load(folder / f"shop.emb-{make.__name__}.npy")
    assert emb.tolist() == [[float(i), 1.0] for i in items(folder)] and emb.dtype == np.float32
    card = json.loads((folder / "shop.card.json").read_text())
    assert card["source"]["kind"] == make.__name__ and card["steps"]["embedded"]["interactions"] == 9
    assert card["split"]["test"] == 1
    cut = DataOptions(dataset="shop", data_path=str(tmp_path), split="time",
                      time_quantile=yaml.safe_load((folder / "shop.yaml").read_text())["time_quantile"])  # fmt: skip
    data = read_dataset(cut)
    assert data.facts["rows_before_cut"] == 8
    assert [data.catalogue.ids[i - 1] for i in data.test.targets] == ["1"]
    with pytest.raises(Problem, match="6 of 6 interactions lie before the last 7 days"):  # its test row did not save Q
        prepare(tmp_path / "source", tmp_path / "rare", *options, "--item_core=3")


# ---------------------------------------------------------------- layouts, back and forth


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A prepared data set of 30 users, from a table: equal times, ratings, titles with commas and quotes."""
    root = tmp_path_factory.mktemp("prepared")
    random = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{i}", 1 + n % 5, t // 2) for u in range(30) for n, (t, i) in
            enumerate((t, random.integers(20)) for t in range(random.integers(4, 9)))]  # fmt: skip
    table(root / "clicks.csv", ["user_id", "item_id", "rating", "timestamp"], rows)
    table(
        root / "items.csv",
        ["item_id", "title", "brand"],
        [(f"i{i}", f"A 'b', c; {i}", f"Brand {i}") for i in range(20)],
    )
    return prepare(root, root / "shop", "--duplicates=all")


@pytest.mark.parametrize("layout", WRITERS)
def test_there_and_back(layout, shop, tmp_path):
    """Sequences return whole from every layout, texts from those that have a place for them."""
    other = prepare(shop, tmp_path / "shop", f"--to={layout}", "--duplicates=all")
    back = prepare(other, tmp_path / "back" / "shop", "--duplicates=all")
    assert sequences(back) == sequences(shop)
    known = items(shop)
    assert items(back) == ({i: {} for i in known} if layout == "diger" else known)
    if layout in ("own", "recbole", "table"):  # the others know the order only
        assert (back / "shop.inter").read_bytes() == (shop / "shop.inter").read_bytes()


def test_a_line_a_user(tmp_path):
    for kind in ("p5", "s3rec"):
        (tmp_path / kind).mkdir()
    (tmp_path / "p5" / "user_sequence.txt").write_text("u1 B A\nu2 A C B\n")
    (tmp_path / "p5" / "item_plain_text.txt").write_text("A red mug\nB tea\nC \n")
    (tmp_path / "s3rec" / "Beauty.txt").write_text("1 8 7\n2 7 9 8\n")
    found = {kind: prepare(tmp_path / kind, tmp_path / f"of_{kind}" / "shop") for kind in ("p5", "s3rec")}
    assert sequences(found["p5"]) == {"u1": "BA", "u2": "ACB"}
    assert items(found["p5"]) == {"B": {"text": "tea"}, "A": {"text": "red mug"}, "C": {}}
    assert sequences(found["s3rec"]) == {"1": "87", "2": "798"}


@pytest.mark.parametrize("layout", ["recbole", "letter", "diger", "table"])
def test_training_reads_the_same_samples(layout, shop, tmp_path):
    other = prepare(shop, tmp_path / "shop", f"--to={layout}", "--duplicates=all")
    read = [read_dataset(DataOptions(dataset="shop", data_path=str(folder))) for folder in (shop, other)]
    numbers = next(other.glob("*.item2id"), None)
    for part in ("train", "valid", "test"):
        ours, theirs = ([(d.catalogue.ids[i - 1]) for i in d.split(part).targets] for d in read)
        known = dict(map(reversed, (line.split("\t") for line in numbers.read_text().splitlines()))) if numbers else {}
        assert sorted(ours) == sorted(known.get(i, i) for i in theirs)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
@pytest.mark.parametrize(("name", "counts", "samples"), [
    ("beauty", (198_502, 22_363, 12_101), (131_413, 22_363, 22_363)),
    ("scientific", (58_492, 8_317, 4_344), (33_541, 8_317, 8_317)),
    pytest.param("yelp", (316_354, 30_431, 20_033), (225_061, 30_431, 30_431), marks=pytest.mark.slow),
])  # fmt: skip
def test_the_counts_of_the_paper(name, counts, samples, tmp_path):
    folder = prepare(SHARED / name, tmp_path / name, "--k_core=5")
    card = json.loads((folder / f"{name}.card.json").read_text())
    assert tuple(card["statistics"][k] for k in ("interactions", "users", "items")) == counts
    assert tuple(card["split"][k] for k in ("train", "valid", "test")) == samples
    for file in (f"{name}.inter", f"{name}.items.jsonl"):
        assert (folder / file).read_bytes() == (SHARED / name / file).read_bytes()


# ---------------------------------------------------------------- steps


def test_rating_core_and_longest_history(shop, tmp_path):
    """Against a plain count over the rows."""
    rows = [line.split("\t") for line in (shop / "shop.inter").read_text().splitlines()[1:]]
    rows = [r for r in rows if int(r[2]) >= 2]
    while True:
        of = [{k: sum(r[c] == k for r in rows) for k in {r[c] for r in rows}} for c in (0, 1)]
        left = [r for r in rows if of[0][r[0]] >= 3 and of[1][r[1]] >= 3]
        if len(left) == len(rows):
            break
        rows = left
    expected = {}
    for user, item, _, _ in rows:
        expected[user] = [*expected.get(user, []), item][-4:]
    folder = prepare(shop, tmp_path / "s", "--min_rating=2", "--k_core=3", "--duplicates=all", "--max_history=4")
    found = [line.split("\t") for line in (folder / "s.inter").read_text().splitlines()[1:]]
    assert {u: [r[1] for r in found if r[0] == u] for u in dict.fromkeys(r[0] for r in found)} == expected


@pytest.mark.parametrize(("rule", "kept"), [
    ("exact", [0, 1, 2, 4, 5]), ("first", [1, 2, 5]), ("last", [0, 2, 5]),
])  # fmt: skip
def test_repeats(rule, kept):
    """Rows: (a, x, 5), (a, x, 3), (a, y, 3), the second again, (a, x, 4), (b, x, 3)."""
    user, item, time = np.array([0, 0, 0, 0, 0, 1]), np.array([0, 0, 1, 0, 0, 0]), np.array([5.0, 3, 3, 3, 4, 3])
    rows = Events(user, item, time, ["a", "b"], ["x", "y"])
    assert np.flatnonzero(kept_of_repeats(rows, rule)).tolist() == kept


def test_a_split_by_time_is_counted_and_named(shop, tmp_path):
    folder = prepare(shop, tmp_path / "s", "--split=time", "--time_quantile=0.7")
    card = json.loads((folder / "s.card.json").read_text())
    preset = (folder / "s.yaml").read_text()
    assert "split: time\ntime_quantile: 0.7" in preset
    data = read_dataset(DataOptions(dataset="s", data_path=str(tmp_path), split="time", time_quantile=0.7))
    assert [card["split"][p] for p in ("train", "valid", "test")] == [
        len(data.split(p)) for p in ("train", "valid", "test")
    ]


@pytest.mark.parametrize(("items", "samples", "want"), [
    (100, 0, 128), (100, 25_600, 128), (100, 25_601, 256), (1349, 96_458, 512), (9000, 33_541, 256),
    (9000, 10**9, 2048),
])  # fmt: skip
def test_batches_grow_with_the_data(items, samples, want):
    """So that an epoch has 200 steps at most, as long as a batch is not too large."""
    options = yaml.safe_load(prepare_data.preset("s", items, samples, PrepareOptions(), drop=False))
    assert options["batch_size"] == want
    assert options["with_two_stage"] and options["with_sasrec"]  # whatever the size, one table of them all


def test_the_run_script_takes_it_as_it_is(shop):
    """The preset beside the data is found; what is missing still is named with the command that makes it."""
    with pytest.raises(Problem, match=r"beside 'shop': python scripts/embed_items.py \S+shop makes them"):
        run.run("frqud", ["shop", f"--data_path={shop.parent}", "--dry_run"])


# ---------------------------------------------------------------- what is wrong

GOOD = "user_id,item_id,timestamp\nu,a,1\nu,b,2\nu,c,3\nu,d,4\n"
NAMES = "item_id,title\na,A\nb,B\nc,C\nd,D\n"
WRONG = [
    ("clicks.csv", "user_id,when,item_id\nu,1,a\n", [], r"holds the times\? Set --time_col=NAME, or --time_col=none"),
    ("clicks.csv", GOOD, ["--users_col=uid"], r"no column 'uid' \(users_col\); there are user_id, item_id, timestamp"),
    ("clicks.csv", GOOD, ["--users_col=item_id"], r"are not three columns"),
    ("clicks.csv", GOOD.replace("item_id", "user id"), [], r"user_id and user id may both be meant; choose by"),
    ("clicks.csv", "", [], r"clicks.csv: empty"),
    ("clicks.csv", "user_id,item_id,timestamp\n", [], r"clicks.csv: holds no interactions"),
    ("clicks.csv", GOOD + "v,a,soon\n", [], r"clicks.csv, row 6: the time 'soon' is not a number"),
    ("clicks.csv", GOOD.replace(",4\n", ",2024-01-01\n"), [], r"row 5: the time '2024-01-01' is not a number"),
    ("clicks.csv", GOOD.replace("1\n", "2024-01-01\n"), [], r"row 2: the time '2024-01-01' is not a number"),
    ("clicks.csv", GOOD + "v,a\n", [], r"clicks.csv, line 6: 2 cells where the first line has 3"),
    ("clicks.csv", GOOD + "v,a,1,9\n", [], r"clicks.csv, line 6: 4 cells where the first line has 3"),
    ("clicks.csv", GOOD + ",a,1\n", [], r"row 6: the user is empty"),
    ("clicks.csv", GOOD + "v,,1\n", [], r"row 6: the item is empty"),
    ("clicks.csv", GOOD + 'v,"x\ty",1\n', [], r"row 6: the item holds a tab"),
    ("clicks.csv", GOOD.encode() + "vü,a,1\n".encode("latin-1"), [], r"clicks.csv, line 6: not UTF-8; convert it"),
    ("clicks.csv.gz", gzip.compress(GOOD.encode() * 200)[:-30], [], r"gz: damaged after line \d+ .*get it again"),
    ("clicks.parquet", b"PAR1 and then something else", [], r"clicks.parquet: not readable \(.*"),
    ("clicks.parquet", GOOD, [], r"clicks.parquet: no Parquet file; give it the ending"),
    ("clicks.jsonl", '{"user_id": 1}\n{"user_id":\n', [], r"clicks.jsonl, line 2: not readable as JSON"),
    ("clicks.jsonl", "[1]\n", [], r"clicks.jsonl, line 1: a list of JSON"),
    ("clicks.doc", "hello", [], r"of no kind that is known; name it: --source=KIND"),
    ("clicks.csv", GOOD, ["--source=excel"], r"source: 'excel' is unknown; expected auto or one of"),
    ("clicks.csv", GOOD, ["--min_rating=3"], r"min_rating: there are no ratings; name their column by rating_col"),
    ("clicks.csv", GOOD, ["--k_core=9"], r"k_core 9 leaves none of 4 interactions; choose another --k_core"),
    ("clicks.csv", GOOD, ["--to=excel"], r"--to: unknown layout 'excel'; expected one of own"),
    ("clicks.csv", GOOD, ["--k_cor=9"], r"unknown option 'k_cor'; did you mean 'k_core'"),
    ("clicks.csv", GOOD.replace(",a,", ",[PAD],"), ["--to=diger"], r"called \[PAD\], which the layout diger keeps"),
    ("clicks.csv", GOOD, ["--items=items.csv"], r"items.csv: no such file"),
    ("clicks.csv", GOOD, ["--items=clicks.csv"], r"clicks.csv: is named as clicks and as items"),
    ("x.inter", "user_id:token\titem_id:token\nu\ti\n", [], r"x.inter: no column timestamp:float, separated by tabs"),
    ("x.test.jsonl", '{"inter_history": [], "target_id": 1}\n', [], r"x.train.jsonl: no such file"),
    ("x.inter.json", '{"u": [1, 2.5]}', [], r"user 'u' has the item 2.5; expected numbers or ids"),
    ("x.inter.json", "[1]", [], r"expected an object of user -> list of items"),
    ("clicks.csv", "user_id,item_id,timestamp\nu,a,2024-01-01\nu,b,2024-01-32\n", [], r"row 3: the time '2024-01-32'"),
    ("u.data", "1\t2\t3\t4\n1\t3\t3\tx\n", [], r"u.data, row 2: the time 'x' is not a number"),
]  # fmt: skip
WRONG_ITEMS = [
    ("name,title\na,A\n", [], r"items.csv: which column holds the items\? Set --items_col=NAME"),
    (NAMES + "a,A again\n", [], r"items.csv: item 'a' stands there twice"),
    (
        NAMES.replace("\n", "\n0").removesuffix("0"),
        [],
        r"items.csv: no id there is one of the items that are kept, whose first is 'a'",
    ),
    (NAMES + 'e,"unclosed' + "\n" * 140_000, [], r"items.csv, line 6: a quotation mark inside a cell"),
    (NAMES, ["--text_cols=colour"], r"items.csv: no column 'colour' \(text_cols\); there are item_id, title"),
    (NAMES.encode() + "e,\xe9\n".encode("latin-1"), [], r"items.csv, line 6: not UTF-8"),
]


def refused(tmp_path, capsys, argv, message):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Problem, match=message) as found:
        prepare_data.run(argv)
    assert "\n" not in str(found.value)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is left


@pytest.mark.parametrize(("name", "content", "options", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_source_is_one_line(name, content, options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    core = [] if any("k_core" in o for o in options) else ["--k_core=0"]
    refused(tmp_path, capsys, [name, "--out=shop", *core, *options], message)


@pytest.mark.parametrize(("content", "options", "message"), WRONG_ITEMS, ids=range(len(WRONG_ITEMS)))
def test_wrong_texts_are_one_line(content, options, message, tmp_path, capsys):
    (tmp_path / "clicks.csv").write_text(GOOD)
    (tmp_path / "items.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    argv = [
        str(tmp_path / "clicks.csv"),
        "--items",
        str(tmp_path / "items.csv"),
        "--out",
        str(tmp_path / "shop"),
        "--k_core=0",
    ]
    refused(tmp_path, capsys, [*argv, *options], message)


def test_a_key_of_late_lines_is_read(tmp_path):
    """Optional fields of an export may first occur after the lines that tell the columns."""
    rows = [{"item_id": f"i{n}", "title": f"T{n}"} | ({"brand": "B"} if n > 1100 else {}) for n in range(1, 1131)]
    clicks = [{"user_id": f"u{n // 5}", "item_id": r["item_id"], "timestamp": n} for n, r in enumerate(rows)]
    clicks = [c | ({"stars_of": 5} if n > 1100 else {}) for n, c in enumerate(clicks)]
    for name, lines in (("items", rows), ("clicks", clicks)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    argv = [str(tmp_path / "clicks.jsonl"), "--items", str(tmp_path / "items.jsonl"), "--k_core=0"]
    prepare_data.run([*argv, "--out", str(tmp_path / "out" / "shop")])
    texts = [json.loads(line) for line in (tmp_path / "out" / "shop" / "shop.items.jsonl").read_text().splitlines()]
    assert sum("brand" in row for row in texts) == 30
    with pytest.raises(Problem, match=r"clicks.jsonl, row 1: the rating None is not a number"):
        prepare_data.run([*argv, "--rating_col=stars_of", "--min_rating=1", "--out", str(tmp_path / "out" / "rated")])


@pytest.mark.parametrize("lacking", [ImportError("no module"), NameError("name 'PyLazyFrame' is not defined")])
def test_without_polars_or_its_runtime(lacking, monkeypatch, tmp_path):
    def fails(*args):
        raise lacking

    monkeypatch.setattr(pl, "LazyFrame", fails)
    with pytest.raises(Problem, match="needs polars"):
        prepare_data.run(["x.csv", f"--out={tmp_path / 'x'}"])


def test_nothing_is_overwritten(shop, tmp_path, capsys):
    refused(tmp_path, capsys, [str(shop), "--out", str(tmp_path / "demo")], "demo is the name of the demo's data")
    refused(tmp_path, capsys, [str(shop), "--out", str(shop)], "is there already; choose another name")
    for name in ("-x", "..", ".x", "a\tb"):  # no run script would take it
        refused(tmp_path, capsys, [str(shop), f"--out={tmp_path / 'out' / name}"], "ends in no plain name; write")
    (tmp_path / "file").write_text("")
    refused(tmp_path, capsys, [str(shop), "--out", str(tmp_path / "file")], "is there already")
    refused(tmp_path, capsys, [str(shop), "--out", str(tmp_path / "file" / "x")], "cannot be written")
    refused(tmp_path, capsys, [str(tmp_path / "none.csv"), "--out", str(tmp_path / "x")], "none.csv: no such file")


def test_what_was_found_is_told(tmp_path, capsys):
    (tmp_path / "clicks.csv").write_text(GOOD)
    (tmp_path / "items.csv").write_text(NAMES)
    prepare(tmp_path, tmp_path / "out" / "shop")
    told = f"read as table: {tmp_path / 'clicks.csv'}; texts: {tmp_path / 'items.csv'}\n"
    assert told in capsys.readouterr().out


def test_data_that_cannot_be_trained_on_say_so(tmp_path, capsys):
    (tmp_path / "clicks.csv").write_text("user_id,item_id,timestamp\nu,a,1\nv,b,2\n")
    folder = prepare(tmp_path / "clicks.csv", tmp_path / "shop")
    card = json.loads((folder / "shop.card.json").read_text())
    assert card["split"]["users_of_fewer_than_3"] == 2
    assert "problem" in card["split"]
    out = capsys.readouterr().out
    assert "not to be trained on as it is" in out
    assert "next:" not in out


def test_half_of_a_surrogate_pair_in_a_text_does_not_end_the_work(shop, tmp_path):
    """JSON may hold one; no file of UTF-8 can."""
    other = prepare(shop, tmp_path / "shop", "--to=letter", "--duplicates=all")
    file = other / "shop.item.json"
    known = json.loads(file.read_text())
    known["0"]["title"] = "bad \ud83d x"
    file.write_text(json.dumps(known))
    back = prepare(other, tmp_path / "back" / "shop", "--duplicates=all")
    assert "bad ? x" in {row["title"] for row in items(back).values()}
    assert title({"title": "bad \ud83d x"}) == "bad ? x"
