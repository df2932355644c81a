"""`--seeds` of every command that takes it: one reading, one line where it cannot be read."""

import importlib

import pytest

from utils import Problem, seeds_of

COMMANDS = {  # module: (its function, words before the seeds)
    "compare": ("compare", ["demo", "sasrec"]),
    "reproduce": ("reproduce", ["demo"]),
    "sid_study": ("run", ["demo", "kmeans"]),
    "length_study": ("run", ["config/ml-100k_varlen.yaml", "fixed4"]),
    "cut_study": ("run", ["demo", "--json", "x.json"]),
}


def test_distinct_and_in_order():
    assert seeds_of("3,1,3,02") == ["3", "1", "02"]


@pytest.mark.parametrize("text", ["", "1,", "x", "-1", "1.5", "9" * 50, "1 2"])
def test_what_is_no_whole_number_is_one_short_line(text):
    with pytest.raises(Problem, match="--seeds: expected whole numbers") as problem:
        seeds_of(text)
    assert len(str(problem.value)) < 300


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_reads_them_so(module):
    name, words = COMMANDS[module]
    with pytest.raises(Problem, match="--seeds: expected whole numbers"):
        getattr(importlib.import_module(f"scripts.{module}"), name)([*words, "--seeds=1," + "9" * 50])
