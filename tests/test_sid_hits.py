"""Hit rates of generations made elsewhere: golden examples, what cannot be read, both spellings."""

import json

import pytest

from scripts import sid_hits
from utils import Problem

ITEMS = {"a": (0, 0, 0), "b": (0, 0, 0), "c": (0, 0, 1), "d": (0, 1, 0), "e": (0, 1, 0), "f": (0, 1, 0), "g": (1, 0, 0)}
SAMPLES = [(["001", "999", "010", "000"], "e;a"), (["100", "000"], "b"), (["010"], "g;d;zz")]


def forge(digits):
    return "".join(f"C{int(d) + 10 * level}" for level, d in enumerate(digits))


def ours(digits):
    return "".join(f"<{letter}_{d}>" for letter, d in zip("abc", digits, strict=True))


@pytest.fixture(params=["csv", "json"])
def files(request, tmp_path):
    """(generations, map) in FORGE's spelling or in ours."""
    spell, key = (forge, "_generated_new_text_") if request.param == "csv" else (ours, "_generated_text_")
    lines = [json.dumps({"answer": answer, key: [*map(spell, beams)]}) for beams, answer in SAMPLES]
    (tmp_path / "out.jsonl").write_text("\n".join(lines) + "\n")
    table = tmp_path / f"map.{request.param}"
    if request.param == "csv":
        rows = [f'{item},"{",".join(map(str, sid))}"' for item, sid in ITEMS.items()]
        table.write_text("\n".join(["item_id,SID", *rows]) + "\n")
    else:
        table.write_text(json.dumps({item: [f"<{x}_{c}>" for x, c in zip("abc", sid, strict=True)]
                                     for item, sid in ITEMS.items()}))  # fmt: skip
    return tmp_path / "out.jsonl", table


def rates(files, *words):
    return sid_hits.run([*map(str, files), "--k", "1,2,3,5,20", "--codes", "10", *words])


def test_the_golden_example(files, tmp_path):
    """Macro hit rates worked out by hand; 999 is nobody's SID and takes no place."""
    found = rates(files, "--json", str(tmp_path / "found.json"))
    want = {"hr@1": 1 / 9, "hr@2": 1 / 9, "hr@3": 11 / 18, "hr@5": 7 / 9, "hr@20": 7 / 9}
    assert {k: found[k] for k in want} == pytest.approx(want)
    assert found["samples"] == 3 and found["unreadable"] == 0 and found["valid_share"] == pytest.approx(6 / 7)
    assert json.loads((tmp_path / "found.json").read_text()) == found


@pytest.mark.parametrize("line", ["", "{", "[1]", '{"answer": "a"}', '{"answer": "", "_generated_text_": []}',
                                  '{"answer": "a", "_generated_text_": "C1"}', "\udcff"])  # fmt: skip
def test_a_line_that_cannot_be_read_is_a_miss(files, line, caplog):
    with files[0].open("ab") as f:
        f.write(line.encode("utf-8", "surrogateescape") + b"\n")
    found = rates(files)
    assert found["unreadable"] == 1 and found["samples"] == 4 and found["hr@20"] == pytest.approx(7 / 12)


def test_an_answer_that_is_a_sid(files):
    spell = forge if files[1].suffix == ".csv" else ours
    files[0].write_text(json.dumps({"answer": spell("010"), "_generated_text_": [spell("001"), spell("010")]}) + "\n")
    found = rates(files)
    assert found["hr@1"] == 0 and found["hr@2"] == 1


def test_what_is_no_such_file_is_one_line(tmp_path, files):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "list.json").write_text("[]")
    for words, message in [
        ([files[0]], "name a file of generations and a map"),
        ([tmp_path / "none.jsonl", files[1]], "no such file"),
        ([tmp_path / "empty.jsonl", files[1]], "is empty"),
        ([files[0], tmp_path / "list.json"], "expected"),
        ([files[0], files[1], "--k=0"], "k: must be at least 1"),
    ]:
        with pytest.raises(Problem, match=message):
            sid_hits.run(list(map(str, words)))
