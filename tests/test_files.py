"""Files as people have them: the right rows and a word in the log, or one line that says what the file is."""

import bz2
import datetime
import gzip
import io
import json
import lzma
import math
import os
import re
import tarfile
import zipfile

import polars as pl
import pytest

from readers.layouts import read_dataset
from readers.splits import DataOptions
from readers.tables import Columns, read_rows
from scripts import prepare_data
from utils import Problem, log_to, what_is

CLICKS = "user_id,item_id,timestamp\n" + "".join(f"u{n // 4},i{n % 4},{1700000000 + n}\n" for n in range(12))
ITEMS = "item_id,title\n" + "".join(f"i{n},Item {n}\n" for n in range(4))
SOUND = {"u0": "0123", "u1": "0123", "u2": "0123"}
TAB = CLICKS.replace(",", "\t")


def zipped(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as f:
        f.writestr(name, content)
    return buffer.getvalue()


def tarred(content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as f:
        entry = tarfile.TarInfo("clicks.csv")
        entry.size = len(content)
        f.addfile(entry, io.BytesIO(content.encode()))
    return buffer.getvalue()


def frame_of(write, **columns):
    buffer = io.BytesIO()
    getattr(pl.DataFrame(columns or {"user_id": ["u"], "item_id": ["i"], "timestamp": [1]}), write)(buffer)
    return buffer.getvalue()


def prepared(tmp_path, files, *options):
    """The data set of some files: the file itself where there is one, else their folder."""
    for name, content in files.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = path if len(files) == 1 else tmp_path / "src"
    prepare_data.run([str(source), "--out", str(tmp_path / "shop"), "--k_core=0", *options])
    return tmp_path / "shop"


def sequences(folder):
    found = {}
    for line in (folder / "shop.inter").read_text().splitlines()[1:]:
        user, item = line.split("\t")[:2]
        found[user] = found.get(user, "") + item[-1]
    return found


def with_text(title, ending="csv", of="items"):
    sep = "\t" if ending == "tsv" else ","
    return ITEMS.replace(",", sep) + f"i9{sep}{title}\n"


NAMELESS = CLICKS.partition("\n")[2]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = "<!DOCTYPE html>\n<html><body>Sign in</body></html>\n"
REVIEW = '{"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1}\n'


def dated(*cells, name="date"):
    return f"user_id,item_id,{name}\n" + "".join(f"u0,i{n},{cell}\n" for n, cell in enumerate(cells))


def both(columns, *names):
    """A table with two columns of one role."""
    columns = [*columns.split(), *names]
    return ",".join(columns) + "\n" + ",".join("ui345"[: len(columns)]) + "\n"


REFUSED = {
    # what a file is
    "zip": ({"c.csv": zipped("c.csv", CLICKS)}, r"c\.csv: a zip archive; unpack it"),
    "zip.": ({"c.zip": zipped("c.csv", CLICKS)}, r"c\.zip: a zip archive; unpack it"),
    "xlsx": ({"c.csv": zipped("[Content_Types].xml", "<?xml")}, "an Excel workbook; save it as .csv"),
    "bz2": ({"c.csv": bz2.compress(CLICKS.encode())}, "a bzip2 archive; unpack it"),
    "xz": ({"c.csv.xz": lzma.compress(CLICKS.encode())}, "an? xz archive; unpack it"),
    "tar": ({"c.csv": tarred(CLICKS)}, "a tar archive; unpack it"),
    "tar.gz": ({"c.csv.gz": gzip.compress(tarred(CLICKS))}, "a tar archive within gzip; unpack it"),
    "gz twice": ({"c.csv.gz": gzip.compress(gzip.compress(CLICKS.encode()))}, "gzip within gzip; gunzip"),
    "a zip in a folder": ({"c.zip": zipped("c.csv", CLICKS), "notes.md": "x"}, "beside c.zip, a zip archive; name"),
    "a list": ({"c.json": '[{"user_id": "u"}]\n'}, r"line 1: a list of JSON; write an object a line: jq -c"),
    "a long list": ({"c.json": '[\n{"user_id": "u"}\n]\n'}, r"line 1: .*\(a value over several lines; write one"),
    "feather": ({"c.feather": frame_of("write_ipc")}, r"c\.feather: a file of Arrow \(Feather\); save it as"),
    "avro": ({"c.csv": frame_of("write_avro")}, "a file of Avro; save it as"),
    "utf-16": ({"c.csv": CLICKS.encode("utf-16")}, "UTF-16; save it as CSV UTF-8, or convert it: iconv -f utf-16"),
    "utf-16 tsv": ({"c.tsv": TAB.encode("utf-16-be")}, "UTF-16; save it as CSV UTF-8, .* -f utf-16be"),
    "utf-32": ({"c.csv": CLICKS.encode("utf-32")}, "UTF-32; save it"),
    "utf-16 items": ({"c.csv": CLICKS, "i.csv": ITEMS.encode("utf-16")}, r"i\.csv: UTF-16; save it"),
    "latin-1": ({"c.csv": CLICKS.replace("u2", "ü").encode("latin-1")}, r"line 10: not UTF-8; convert it: iconv"),
    "page": ({"c.csv": PAGE}, r"c\.csv: a web page; download it again"),
    "page as gz": ({"reviews_X.json.gz": PAGE, "meta_X.json.gz": gzip.compress(b"{'asin': 'B1'}\n")},
                   r"reviews_X\.json\.gz: a web page"),
    "pointer": ({"reviews_X.json.gz": LFS, "meta_X.json.gz": gzip.compress(b"{'asin': 'B1'}\n")},
                r"reviews_X\.json\.gz: a pointer of Git LFS; fetch the file itself"),
    "pointer meta": ({"X_5.json.gz": gzip.compress(REVIEW.encode()), "meta_X.json.gz": LFS}, "meta_X.* a pointer of"),
    "pointer parquet": ({"c.parquet": LFS}, r"c\.parquet: a pointer of Git LFS"),
    "ods": ({"c.ods": zipped("mimetype", "application/vnd.oasis.opendocument.spreadsheet")}, "an OpenDocument file; s"),
    "xml": ({"c.csv": '<?xml version="1.0"?><rows/>\n'}, "XML; download it again, or save"),
    "a table of html": ({"c.csv": "<table><tr><td>user_id</td></tr></table>\n"}, "a web page"),
    **{f"json, {text[:9]}": ({"c.csv": text}, "line 1: holds JSON, no table; give it the ending .jsonl") for text in (
        '{"error": "Not Found"}\n', '{"user_id": "u"},\n', "[\n{}]\n", '[{"user_id": "u"}]')},
    **{f"drawn, {text[:3]!r}": ({"c.txt": text}, "a table as psql, MySQL or Markdown draws it; export") for text in (
        " user_id | item_id \n---------+---------\n u | i \n(1 row)\n", "| user_id | ts |\n|:---|---|\n| u | 1 |\n",
        "+-----+-----+\n| user_id | item_id |\n+-----+-----+\n")},
    "single quotes": ({"c.csv": "'user_id','item_id','ts'\n'u','i','1'\n"}, r"line 1: cells are quoted by '; write"),
    "blanks above": ({"c.csv": ",,\n" + CLICKS}, "line 1: holds blanks where the names of the columns stand; remove"),
    "blanks alone": ({"c.csv": "\n\n  \n"}, r"c\.csv: empty"),
    **{f"{above!r} above": ({"c.csv": above + CLICKS}, f"stand in line {above.count(chr(10)) + 1}; remove the lines")
       for above in ("# made by x\n", "Export of May\n", "Export of May,,\n", "a\n\nb\n")},
    "separator behind rows": ({"c.csv": CLICKS.replace("\n", ",\n").replace("p,\n", "p\n")}, "first line end in ','"),
    "separator behind names": ({"c.csv": CLICKS.replace("p\n", "p,\n")}, "3 cells .* let the first line end in ','"),
    "two files joined": ({"c.csv": "\ufeff" + CLICKS + "\ufeff" + CLICKS}, "row 14: .* names .* stand there again"),
    "NUL": ({"c.csv": CLICKS * 40 + "u,i\0,1\n"}, "line 521: a NUL byte; the file is damaged"),
    "NUL of json": ({"c.jsonl": '{"user_id": "u", "item_id": "a\\u0000", "ts": 1}\n'}, "row 1: the item holds a tab"),
    "comma behind json": ({"c.jsonl": '{"user_id": "u"},\n'}, "line 1: .*it ends in a comma; leave that out"),
    "python": ({"c.jsonl": "{'user_id': 'u'}\n"}, "line 1: .*quoted by ' as Python prints it"),
    "two objects a line": ({"c.jsonl": '{"user_id": "u"}{"user_id": "v"}\n'}, "line 1: .*several values in a line; w"),
    "lists as ids": ({"c.jsonl": '{"user_id": ["u"], "item_id": "i", "ts": 1}\n'}, "line 1: 'user_id' holds a list;"),
    "NaN as id": ({"c.parquet": frame_of("write_parquet", user_id=[1.0, math.nan], item_id=["a", "b"], ts=[1, 2])},
                  "row 2: the user is empty"),
    **{f"items {ours!r}, {theirs!r}": ({"c.csv": CLICKS.replace("i0", ours), "i.csv": f"item_id,title\n{theirs},x\n"},
                                       re.escape(f"; {ours!a} is {theirs!a} there: spell the ids alike"))
       for ours, theirs in (("12.0", "12"), ("12", "12.0"), ("007", "7"), ("i0", "I0"), ("i0", "i0 "), ("i0 ", "i0"),
                            ("caf\u00e9", "cafe\u0301"))},
    "a part without names": ({"part-0.csv": CLICKS, "part-1.csv": NAMELESS}, r"part-1\.csv, line 1: .* like a row"),
    "test days of numbers": ({"c.csv": dated("20240531", "20240601", name="ts")}, "from 20240531 .* must be dates or",
                             "--split=time", "--test_days=1"),
    **{f"no file {name}": ({"c.csv": CLICKS}, f"no such file; .*{remedy}", f"--items={name}") for name, remedy in (
        ("https://x.org/i.csv", "download"), ("data/*.csv", "a pattern"), (r".\i.csv", "write / "))},
    "sep=;": ({"c.csv": "sep=;\n" + CLICKS.replace(",", ";")}, "line 1: 'sep=' is for Excel alone; remove"),
    # quotes, cells
    **{cell: ({"c.csv": CLICKS, f"i.{ending}": with_text(cell, ending)}, rf"i\.{ending}, line 6: a quotation mark")
       for ending in ("csv", "tsv") for cell in ('"17" tv"', '"The \\"Big\\" 0"', '"Big" tv', '"Foo, \\"Bar\\", Baz"')},
    "cell too many": ({"c.csv": CLICKS.replace("u1,i2", "u1,x,i2")}, "line 8: 4 cells where the first line has 3"),
    "cell too many of jsonl": ({"c.jsonl": '{"user_id": "u"\n'}, "line 1: not readable as JSON"),
    # roles
    **{" and ".join(names): ({"c.csv": both(others, *names)}, f"{names[0]} and {names[1]} may .* by --{role}=")
       for role, others, *names in (
           ("time_col", "user_id item_id", "date", "time"), ("time_col", "user_id item_id", "datetime", "time"),
           ("time_col", "user_id item_id", "Time Stamp", "ts"), ("items_col", "user_id ts", "product", "sku"),
           ("items_col", "user_id ts", "movie-id", "item"), ("users_col", "item_id ts", "user", "customer_id"))},
    "no header": ({"c.csv": NAMELESS}, "line 1: u0, i0, 1700000000 look like a row, .* add a line before it"),
    "no header, pairs": ({"c.txt": "1 4\n1 5\n2 4\n"}, "line 1: 1, 4 look like a row, .* separated alike"),
    "no header, told": ({"c.csv": NAMELESS}, "line 1: u0, i0, 1700000000 look like a row",
                        "--users_col=u0", "--items_col=i0", "--time_col=1700000000"),
    "no time": ({"c.csv": "user_id,isbn,book_rating\nu,i,5\n"}, "or --time_col=none where rows are in the"),
    # times
    "two-digit years": ({"c.csv": dated("30-01-24", "31-01-24", "01-02-24")}, "'30-01-24' is no date like"),
    "two-digit years first": ({"c.csv": dated("24-01-30 10:00:00", "24-01-31 10:00:00")}, "10:00:00' is no date"),
    "american": ({"c.csv": dated("05/31/2024", "06/01/2024")}, "'05/31/2024' is no date like"),
    # parquet
    "lists": ({"c.parquet": frame_of("write_parquet", user_id=["u"], item_id=[["a", "b"]], timestamp=[[1, 2]])},
              "'item_id' holds a list a row; explode it first"),
    "clock": ({"c.parquet": frame_of("write_parquet", user_id=["u"], item_id=["a"], time=[datetime.time(1)])},
              "has no dates"),
    "durations": ({"c.parquet": frame_of("write_parquet", user_id=["u"], item_id=["a"], time=[datetime.timedelta(1)])},
                  r"has no dates \(Duration"),
    "u.data of blanks": ({"u.data": "1 2 3 4\n"}, "line 1: 1 cells .* has 4; cells are separated by tabs here"),
    "ratings.dat cut off": ({"ratings.dat": "1::2::3::4\n1::2::3\n"}, "line 2: 3 cells where such a file has 4; put"),
    "metadata cut off": ({"X_5.json.gz": gzip.compress(REVIEW.encode()), "meta_X.json": "{'asin': 'B"}, "unterminated"),
    "metadata of code": ({"X_5.json.gz": gzip.compress(REVIEW.encode()), "meta_X.json": "exit()\n"}, "no Python lit"),
    "no times in .inter": ({"x.inter": "user_id:token\titem_id:token\nu\ti\n"}, ": --source=table --time_col=none$"),
    "u.data of three columns": ({"u.data": "1\t2\t3\n"}, "line 1: 3 cells where such a file has 4"),
    "empty user": ({"c.csv": CLICKS + ",i1,5\n"}, "row 14: the user is empty; mend .* or all such: --anonymous=drop"),
    # beside
    "item2id": ({"L.inter.json": '{"0": [0, 2]}', "L.item2id": "a\t0\nb\t1\n"},
                "json: item '2' is not in .*L.item2id; add"),
    "item2id with blanks": ({"L.inter.json": '{"0": [0, 1]}', "L.item2id": "a 0\nb 1\n"}, "2id, line 1: expected"),
    "item2id reversed": ({"L.inter.json": '{"0": [0, 1]}', "L.item2id": "0\ta\n1\tb\n"}, "2id, line 1: expected"),
    "inter with blanks": ({"x.inter": "user_id:token\titem_id:token\ttimestamp:float\nu i 1\n"}, "line 2: 1 cells"),
    "an extra tab": ({"x.inter": "a:token\tuser_id:token\titem_id:token\ttimestamp:float\nx\ty\tu\ti\t1\n"},
                     "line 2: 5 cells where the first line has 4"),
    "empty meta": ({"c.csv": CLICKS, "i.csv": ""}, r"i\.csv: empty"),
    "empty meta of Amazon": ({"X_5.json.gz": gzip.compress(REVIEW.encode()), "meta_X.json": ""}, "holds no items"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_one_true_line(case, tmp_path):
    files, message, *options = REFUSED[case]
    with pytest.raises(Problem, match=message) as told:
        prepared(tmp_path, files, *options)
    assert "\n" not in str(told.value) and not (tmp_path / "shop").exists()


PAIRS, HEAD = [f"u{n // 4} i{n % 4}\n" for n in range(12)], CLICKS.partition("\n")[0] + "\n"
RATED = [line + ("," + cell) for line, cell in zip(CLICKS.splitlines(), ["rating", *"54—3 12345"], strict=False)]
READ = {
    **{f"separated by {sep!r}": ({"c.txt": CLICKS.replace(",", sep)}, "") for sep in ",;|\t "},
    **{f"line ends {end!r}": ({"c.csv": CLICKS.replace("\n", end)}, "") for end in ("\r\n", "\r", "\n\n")},
    "empty lines": ({"c.csv": CLICKS.replace("u1,i0", "\n\nu1,i0") + "\n"}, "3 empty lines left out"),
    "empty lines before": ({"c.csv": "\n\r\n" + CLICKS.replace(",", ";")}, "2 empty lines left out"),
    "byte order mark": ({"c.csv": "\ufeff" + CLICKS}, ""),
    "byte order mark and quotes": ({"c.csv": "\ufeff" + CLICKS.replace("user_id", '"user_id"')}, ""),
    "blanks after commas": ({"c.csv": CLICKS.replace(",17", ", 17")}, ""),
    "all caps": ({"c.csv": CLICKS.replace("user_id,item_id,timestamp", "USER-ID,Item.ID,Time Stamp")}, "users USER-ID"),
    "online retail": ({"c.csv": CLICKS.replace("user_id,item_id,timestamp", "CustomerID,StockCode,InvoiceDate")}, ""),
    "no times": ({"c.csv": "User-ID;ISBN\n" + "".join(PAIRS).replace(" ", ";")}, "", "--time_col=none"),
    "pairs": ({"c.txt": "user item\n" + "".join(PAIRS)}, "", "--time_col=none"),
    "iso dates": ({"c.csv": dated("2024-01-30", "2024-01-31", "2024-02-01T10:00:00Z")}, "", {"u0": "012"}),
    # ratings that nobody asks for
    "ratings": ({"c.csv": "\n".join(RATED)}, "2 rows have no number as rating, so ratings are left",
                {"u0": "0123", "u1": "0123", "u2": "01"}),
    "two ratings": ({"c.csv": both("user_id item_id ts", "stars", "overall")}, "", {"u": "i"}),
    # folders
    "spark": ({"part-0.csv": CLICKS, "_SUCCESS": "", "_delta_log/0.json": "{}", "README.md": "x", "~$c.csv": "x",
               ".c.csv.crc": "x", "LICENSE.txt": "free"}, r"not read: .*README\.md, _SUCCESS, _delta_log"),
    "users beside": ({"c.csv": CLICKS, "users.csv": "user_id,age\nu0,5\n", "i.csv": ITEMS}, r"not read: users\.csv"),
    "hive": ({f"date=2024-05-0{d}/part-0.parquet": frame_of("write_parquet", user_id=["u"], item_id=[f"i{d}"])
              for d in (1, 2, 3)}, "times date", {"u": "123"}),
    **{f"copies {name}": ({"c.csv": CLICKS, name: content}, "", SOUND)
       for name, content in (("c (1).csv", CLICKS), ("c.csv.gz", gzip.compress(CLICKS.encode())))},
    # a split
    "train, test": ({"test.csv": HEAD + "u0,i9,4\n", "train.csv": HEAD + "u0,i0,3\nu0,i4,4\n"},
                    r"read as one log, in the order train\.csv, test\.csv, and split anew", {"u0": "049"}),
    "folders of a split": ({f"{p}/0.csv": HEAD + f"u0,i{n},4\n" for n, p in enumerate(("TrainSet", "val", "Test"))},
                           "read as one log", {"u0": "012"}),
    # ids
    **{f"users {word}": ({"c.csv": CLICKS.replace("u2", word)}, f"4 rows are of the user '{word}', which",
                         {"u0": "0123", "u1": "0123", word: "0123"}) for word in ("nan", "NULL", "None", "#N/A", "-1")},
    "items of Excel": ({"c.csv": CLICKS.replace("i3", "1.23457E+12")}, "1 items are numbers that were cut short",
                       {f"u{n}": "0122" for n in range(3)}),
    "floats as ids": ({"c.parquet": frame_of("write_parquet", user_id=[1.0] * 3,
                        item_id=[0.0, 1.0, 12.5], ts=[1, 2, 3]),
                       "i.csv": "item_id,title\n0,a\n1,b\n12.5,c\n"}, "texts: 3 of 3", {"1": "015"}),
    "floats of json": ({"c.jsonl": "".join(f'{{"user_id": 1.0, "item_id": {n}.0, "ts": {n}}}\n' for n in range(3)),
                        "i.jsonl": '{"item_id": 1, "title": "b"}\n'}, "texts: 1 of 3", {"1": "012"}),
    "a column called row": ({"c.parquet": frame_of("write_parquet", user_id=["u", "u"], row=[1, 2], ts=[2, 1])},
                            "items row", {"u": "21"}, "--items_col=row"),
    **{f"not seen {twin!a}": ({"c.csv": f"user_id,item_id,ts\nu,{word},1\nu,{twin},2\n"},
                              "1 of them those of another item without", {"u": word[-1] + twin[-1]})
       for word, twin in (("i1", "i1\u200b"), ("i1", "\ufeffi1"), ("i1", "i1\u00a0"), ("\u00e9", "e\u0301"))},
    "blanks behind": ({"c.csv": CLICKS.replace("u2,i1", "u2,i1 ")}, "1 of them those of another item without",
                      {"u0": "0123", "u1": "0123", "u2": "0 23"}),
    "nobody": ({"c.csv": CLICKS + ",i1,5\n,i2,6\n"}, "2 rows without a user are left out", "--anonymous=drop"),
    # times
    "two units": ({"c.csv": dated("1700000000", "1700000001000", name="ts")}, r"several units \(1 in seconds",
                  {"u0": "01"}),
    "time 0": ({"c.csv": dated("1700000000", "0", name="ts")}, "1 rows have the time 0", {"u0": "10"}),
    "time -1": ({"c.csv": dated("1700000000", "-1", name="ts")}, "1 rows have the time 0 or less", {"u0": "10"}),
    "times of Excel": ({"c.csv": dated("1.70001E+09", "1.70000E+09", name="ts")}, "six digits and zeros", {"u0": "10"}),
    "odd years": ({"c.csv": dated("9999-12-31", "2024-01-01")}, "1 rows are dated before 1970 or after", {"u0": "10"}),
    "hours alone": ({"c.csv": dated("2024-05-31 12:00:00+02", "2024-05-31 11:00:00.5+00")}, "", {"u0": "01"}),
    "no times in .inter": ({"x.inter": "user_id:token\titem_id\nu\ti1\nu\ti0\n"}, "", {"u": "10"},
                           "--source=table", "--time_col=none"),
    "released samples": ({f"x.{part}.jsonl": f'{{"inter_history": {[*range(n)]}, "target_id": {n}}}\n'
                          for part, n in (("train", 2), ("valid", 3), ("test", 4))},
                         r"^(?!(.|\n)*not read)", {"u0": "01234"}),
    "no ratings": ({"c.csv": both("user_id item_id ts", "stars")}, "", {"u": "i"}, "--rating_col=none"),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_every_row_is_read_and_the_log_says_what_is_odd(case, tmp_path, capsys):
    files, told, *more = READ[case]
    want = next((m for m in more if isinstance(m, dict)), SOUND)
    folder = prepared(tmp_path, files, *(m for m in more if isinstance(m, str)))
    assert sequences(folder) == want
    out = capsys.readouterr().out
    assert re.search(told, out) and re.search("columns: (users .*, items |none)", out)


TEXTS = {
    "pandas' index": ("i.csv", ",item_id,title\n0,i0,A\n", {"title": "A"}),
    "pandas' index, unnamed": ("i.csv", "Unnamed: 0,item_id,title\n0,i0,A\n", {"title": "A"}),
    "pandas' index in Parquet": (
        "i.parquet", frame_of("write_parquet", item_id=["i0"], title=["A"], __index_level_0__=[7]), {"title": "A"}),
    "inches": ("i.csv", 'item_id,title\ni0,17" tv\n', {"title": '17" tv'}),
    "inches, tabs": ("i.tsv", 'item_id\ttitle\ni0\tA 17" tv, 3" deep\n', {"title": 'A 17" tv, 3" deep'}),
    "entities": ("i.csv", "item_id,title\ni0,Salt &amp; Pepper\n", {"title": "Salt &amp; Pepper"}),
    "nested": ("i.jsonl", '{"id": "i0", "categories": [["A", "B"], ["C"]]}\n', {"categories": "A, B, C"}),
    "NaN": ("i.jsonl", '\ufeff{"item_id": "i0", "title": "A", "price": NaN}\n', {"title": "A", "price": "NaN"}),
    "id": ("i.csv", "id,title\ni0,A\n", {"title": "A"}),
    "id, told": ("i.csv", "id,title\ni0,A\n", {"title": "A"}, "--items_col=id"),
    "the clicks' name, told": ("i.csv", "id,title\ni0,A\n", {"title": "A"}, "--items_col=item_id"),
    "lines": ("i.csv", 'item_id,text\ni0,"a\n\nb"\n', {"text": "a\n\nb"}),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_texts_are_as_they_stand(case, tmp_path, capsys):
    name, content, want, *options = TEXTS[case]
    folder = prepared(tmp_path, {"c.csv": CLICKS, name: content}, *options)
    first = json.loads((folder / "shop.items.jsonl").read_text().splitlines()[0])
    assert first == {"item_id": "i0", **want}
    out = capsys.readouterr().out
    assert ("HTML" in out) == (case == "entities") and "3 of 4 items have no text" in out
    assert re.search("left out: '(Unnamed: 0|__index_level_0__)?'", out) or "pandas" not in case


DIRECT = {
    "17 in quotes": (lambda n: '"17" tv"' if n == 10 else "x", "line 12: a quotation mark inside a cell"),
    "never ended": (lambda n: '"cut' if n == 10 else "x", "line 12: .* or a quotation that has no"),
    "a separator": (lambda n: "Foo, Bar" if n == 10 else "x", "line 12: 5 cells where the first line has 4"),
    "large": (lambda n: "y" * 200_000 if n == 9 else "a,b" if n == 10 else "x", "line 12: 5 cells where"),
    "lines": (lambda n: f'"would buy\n\nagain {n}, yes, yes"', None),
    "lines beyond a block": (lambda n: '"' + "would buy\n\nagain, yes, yes\n" * 4000 + '"', None),
    "inches": (lambda n: '17" tv', None),
}


@pytest.mark.parametrize("case", DIRECT)
def test_the_direct_csv_is_read_whole_or_refused(case, tmp_path):
    cell, message = DIRECT[case]
    path = tmp_path / "x.csv"
    path.write_text("user,item,time,title\n" + "".join(f"u{n // 5},i{n % 5},{n},{cell(n)}\n" for n in range(100)))
    columns = Columns("user", "item", "time", ",")
    if message is None:
        assert read_rows(path, columns).time.tolist() == list(range(100))
    else:
        with pytest.raises(Problem, match=message):
            read_rows(path, columns)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("x.csv", "user,item,time\nu,i,2024-05-20\n", "line 2: timestamp '2024-05-20' is not a number; scripts/prep"),
    ("x.csv", zipped("x.csv", CLICKS), "a zip archive; unpack it"),
    ("x.csv", CLICKS.encode("utf-16"), "UTF-16; save it"),
    ("x.csv", gzip.compress(CLICKS.encode()), "no column 'user'"),
    ("x.csv", "user,item,time\nu,i,\n", "line 2: timestamp '' is not a number; mend that row"),
    ("x.csv", "user,item,time\nu,i,1\nuser,item,time\n", "line 3: .*the names of the columns stand there again"),
    ("x.csv", "user;item;time\nu;i;1\n", "there are user;item;time; scripts/prepare_data.py reads tables whose"),
    ("x.csv", '{"user": "u"}\n', "line 1: holds JSON, no table"),
    ("x.csv", "user,item,time\nu,i,1,\n", "line 2: 4 cells .* let the first line end in ','"),
])  # fmt: skip
def test_the_direct_csv_says_what_a_file_is(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Problem, match=message):
        read_rows(tmp_path / name, Columns("user", "item", "time", ","))


@pytest.mark.parametrize(("make", "message"), [
    (os.mkfifo, "it is a pipe"), (lambda p: p.symlink_to(p), "Too many levels"),
    (lambda p: p.symlink_to("no"), "no such"),
])  # fmt: skip
def test_what_is_no_file_is_named(make, message, tmp_path):
    make(tmp_path / "tiny.inter")
    with pytest.raises(Problem, match=rf"tiny\.inter: .*{message}"):
        read_dataset(DataOptions(dataset="tiny", data_path=str(tmp_path)))


TINY = HEAD.replace(",", "\t").replace("_id", "_id:token").replace("amp", "amp:float") + NAMELESS.replace(",", "\t")
PATH = {"data_path": "DIR"}


@pytest.mark.parametrize(("files", "options", "message"), [
    ({"tiny.inter": TINY, "tiny.items.jsonl.gz": ""}, PATH, r"items\.jsonl\.gz: is packed; unpack it: gunzip "),
    ({"tiny.inter.gz": ""}, PATH, r"tiny\.inter\.gz: is packed; unpack it: gunzip "),
    ({"tiny.inter": TINY}, {"data_path": "DIR/tiny.inter"}, r"name its folder: --data_path=\S+ --dataset=tiny$"),
    ({"c.tsv": TAB}, {"data_path": "DIR/c.tsv"}, r"prepare_data.py \S+c.tsv --out DIR/NAME makes a data set"),
    ({"tiny.inter": TINY}, PATH | {"dataset": "tiny.inter"}, "name of a data set has no ending: --dataset=tiny$"),
    ({"tiny.inter": TINY, "tiny.items.jsonl": '{"item_id": "I0"}\n'}, PATH, "item 'i0' is not in .*; it is 'I0' there"),
    ({"tiny.inter": TINY, "tiny.items.jsonl": '{"id": "i0"}\n'}, PATH, "line 1: no item_id; there are id; write a"),
    ({"tiny.inter": TINY, "tiny.items.jsonl": '{"item_id": true}\n'}, PATH, r"no item_id \(text .*\) but True; write"),
    ({"tiny.inter": TINY, "tiny.items.jsonl": '[{"item_id": "i0"}]\n'}, PATH, r"no item_id \(text .*\) but \[{"),
])  # fmt: skip
def test_the_files_of_a_data_set_are_told_apart(files, options, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    options = {key: value.replace("DIR", str(tmp_path)) for key, value in ({"dataset": "tiny"} | options).items()}
    with pytest.raises(Problem, match=message):
        read_dataset(DataOptions(**options))


def test_several_layouts_and_whole_numbers_as_floats(tmp_path, capsys):
    for name in ("tiny.inter", "tiny.train.inter"):
        (tmp_path / name).write_text(TINY.replace("i", "").replace("tem_d", "item_id").replace("user_d", "user_id")
                                     .replace("tmestamp", "timestamp"))  # fmt: skip
    (tmp_path / "tiny.items.jsonl").write_text("".join(f'{{"item_id": {n}.0}}\n' for n in range(4)))
    log_to(None, main=True)
    assert read_dataset(DataOptions(dataset="tiny", data_path=str(tmp_path))).catalogue.ids == list("0123")
    assert "tiny.inter is read, not tiny.train.inter; data_format chooses" in capsys.readouterr().out


def test_a_column_whose_name_begins_like_a_binary_file_is_text():
    """ORCID is no file of ORC, RDX_score none of R; with a byte that no text has, a file of either."""
    assert what_is(b"ORCID,item_id,timestamp\n") is what_is(b"RDX_score,user\n") is None
    assert what_is(b"ORC\x08\x03")[0] == "a file of ORC" and what_is(b"RDX2\nX\n\0")[0] == "a file of R"
