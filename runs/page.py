"""The report of finished runs: one HTML file that holds all it shows. Text from files is escaped, nothing is loaded."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, TypeGuard

import numpy as np
import torch

import settings
from metrics import half_interval, is_per_user, paired_difference, per_user
from runs import charts
from runs.charts import escaped
from runs.exported import check_checkpoint
from runs.folder import RunFolder
from runs.report import check_protocol, read_ranks
from runs.table import told_apart
from utils import Problem, digest, log, read_checkpoint, read_json, write_text

MOST_ITEMS = 20_000  # in the prefix tree; browsers take no more
MOST_GROUPS = 40  # of colliding items
ENDED = "<z_"  # how the dedup token of a SID of unlike length begins (sids/files.py)
STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:24px auto;max-width:1420px;padding:0 16px;color:#1b1b1b;background:#fff}
h1{font-size:22px}h2{font-size:17px;border-bottom:1px solid #ccc;padding-bottom:3px;margin-top:30px}
.figures{display:flex;flex-wrap:wrap;gap:14px}figure{margin:0;width:440px}
figcaption{font-weight:600;margin-bottom:2px}svg{display:block;max-width:100%}figure>svg{width:440px}
text{font-size:10.5px;fill:#444}.grid{stroke:#e3e3e3}.legend,.note{font-size:12px;color:#444;margin:2px 0}
.legend span{margin-right:12px;white-space:nowrap}.legend svg{display:inline}
table{border-collapse:collapse}td,th{padding:3px 10px;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}td.text,th.text{text-align:left}
tr.unlike td{background:#fff3d6}.heat{width:440px;height:300px;image-rendering:pixelated;border:1px solid #ccc}
details details{margin-left:18px}summary{cursor:pointer}.sid{font-family:monospace;color:#0072b2}
ul{margin:2px 0 2px 18px;padding-left:14px}.wide{overflow-x:auto}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#16181c}text{fill:#bbb}.grid{stroke:#3a3d42}
.legend,.note{color:#aaa}h2,td,th,.heat{border-color:#3a3d42}tr.unlike td{background:#4a3a10}.sid{color:#6cb6e8}}
@media(max-width:500px){body{margin:12px auto}figure,figure>svg,.heat{width:100%;height:auto}}
"""
HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><title>{title}</title><style>{style}</style></head><body>
"""


@dataclass(frozen=True)
class Finished:
    """What a finished run has left, as far as the report shows it."""

    name: str  # method, and what tells it from others of the page
    folder: RunFolder
    options: dict[str, Any]
    results: dict[str, Any]
    rows: list[dict[str, Any]]  # an epoch each
    rank: np.ndarray  # [2, users]: user, rank of the target
    sids: list[list[str]]  # tokens of each item; empty for models over items
    items: list[str]
    titles: list[str]
    split: str | None

    def label(self, item: int) -> str:
        """Title (or id) of an item from 0, escaped."""
        return escaped((self.titles[item] or self.items[item])[:80])

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(epoch, value) of a figure; epoch -1 is the model as it came."""
        found = ((row.get("epoch"), row.get(key)) for row in self.rows)
        return [(x, y) for x, y in found if is_number(x) and is_number(y)]

    def keys(self, prefix: str) -> list[str]:
        """The figures of the epochs whose names begin so, in order of appearance."""
        return [k for k in dict.fromkeys(k for row in self.rows for k in row) if k.startswith(prefix)]

    def curves(self, prefix: str) -> dict[str, list[tuple[float, float]]]:
        return {k.removeprefix(prefix).replace("_", " "): self.curve(k) for k in self.keys(prefix)}


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def finished(folder: RunFolder) -> Finished:
    """Read a finished run; Problem where it is none, or a file of it is damaged."""
    if not folder.path.is_dir():
        raise Problem(f"{folder.path}: no such run folder")
    if not folder.finished:
        raise Problem(f"{folder.path}: holds no {folder.test.name}: not a run folder, or its training is not finished")
    results, state = folder.results(), read_checkpoint(folder.best)
    index = folder.path / f"{results.get('dataset')}.index.json"
    sids = read_json(index) if index.is_file() else {}
    check_checkpoint(folder.best, state)
    items, titles = state["items"], state["titles"]
    if sids and (not isinstance(sids, dict) or sorted(sids) != sorted(map(str, range(len(items))))):
        raise Problem(f"{index}: holds other items than {folder.best.name}; put the run's own file back")
    options = settings.read_yaml(folder.config)
    rank = read_ranks(folder)
    spelled = [list(map(str, sids[str(i)])) for i in range(len(items))] if sids else []
    rows = folder.rows()
    name = str(results.get("method"))
    return Finished(name, folder, options, results, rows, rank, spelled, items, titles, state.get("split"))


def write(folder: RunFolder) -> None:
    """report.html of a run that has just ended. Never in its way: what goes wrong is one line in the log."""
    try:
        write_text(folder.path / "report.html", page([finished(folder)]))
    except Exception as e:
        log.warning(f"{folder.path}: report.html could not be written ({' '.join(str(e).split())[:200]})")


def page(runs: Sequence[Finished]) -> str:
    """The report of one run, or of several side by side; Problem when they were measured in unlike ways."""
    check_alike(runs)
    seeds, hashes = [f"seed {r.options.get('seed')}" for r in runs], [digest(str(r.folder.path))[:4] for r in runs]
    names = told_apart([r.name for r in runs], seeds, hashes)
    runs = [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    title = f"{runs[0].results.get('dataset')}: {', '.join(names)}"
    body = [HEAD.format(title=escaped(title), style=STYLE), f"<h1>{escaped(title)}</h1>", metrics_table(runs)]
    body += ["<h2>Protocol</h2>", protocol_card(runs)]
    if len(runs) > 1:
        body += ["<h2>Comparison</h2>", figures(together(runs))]
    for run in runs:
        body.append(f"<h2>{escaped(run.name)}: training</h2>{figures(training(run))}")
        if run.sids:
            body.append(f"<h2>{escaped(run.name)}: semantic IDs</h2>{figures(usage(run))}{collisions(run)}{tree(run)}")
    return "\n".join([*body, "</body></html>\n"])


# ---------------------------------------------------------------- figures and protocol


def check_alike(runs: Sequence[Finished]) -> None:
    """Problem when runs cannot stand in one table."""
    names = [str(r.folder.path) for r in runs]
    if twice := [n for n in names if names.count(n) > 1]:
        raise Problem(f"{twice[0]}: named twice")
    check_protocol({str(r.folder.path): r.options for r in runs}, leave=("data_path",))
    for run in runs[1:]:
        if run.split != runs[0].split or not np.array_equal(run.rank[0], runs[0].rank[0]):
            raise Problem(
                f"{run.folder.path}: was tested on other interactions, another split or other users than "
                f"{runs[0].folder.path}; their figures cannot be compared"
            )


def metrics_table(runs: Sequence[Finished]) -> str:
    """Test figures with 95 % intervals over users; z, paired over users, against the first run."""
    names = [m for m in runs[0].results if "@" in m and "/" not in m and is_per_user(m)]
    head = "".join(f"<th>{escaped(m)}</th>" for m in names)
    lines = [f"<tr><th>test</th>{head}<th>codes used</th><th>collisions</th><th>epochs (best)</th></tr>"]
    for run in runs:
        cells = [_cell(run, runs[0], m) for m in names]
        used = " ".join(f"{v}" for k, v in run.results.items() if k.startswith("codes_used/")) or "-"
        rate = run.results.get("collision_rate")
        cells += [escaped(used), "-" if rate is None else f"{rate:.4f}"]
        cells.append(escaped(f"{run.results.get('epochs_trained')} ({run.results.get('best_epoch')})"))
        lines.append(f"<tr><td>{escaped(run.name)}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    taken = {run.name for run in runs}
    for other, row in runs[0].folder.beside().items():
        name = f"{other}, beside {runs[0].name}" if other in taken else other
        cells = [f"{row[m]:.4f}" if m in row else "-" for m in names]
        lines.append(f"<tr><td>{escaped(name)}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    note = f"{runs[0].rank.shape[1]} test users; ± half of the 95 % interval over users"
    if len(runs) > 1:
        note += f"; z: paired over users, against {runs[0].name}"
    return f"<div class='wide'><table>{''.join(lines)}</table></div><p class='note'>{escaped(note)}</p>"


def _cell(run: Finished, base: Finished, metric: str) -> str:
    ours, theirs = (per_user(metric, torch.from_numpy(r.rank[1])) for r in (run, base))
    z = f" z&nbsp;{paired_difference(ours, theirs)[1]:+.1f}" if run is not base else ""
    return f"{float(ours.mean()):.4f}&nbsp;±{half_interval(ours):.4f}{z}"


def protocol_card(runs: Sequence[Finished]) -> str:
    """How the runs were measured and made, a column each; rows in which they differ are marked."""
    lines = []
    for name, read in CARD.items():
        cells = [escaped(read(run)) for run in runs]
        kind = ' class="unlike"' if len(set(cells)) > 1 else ""
        lines.append(f"<tr{kind}><td>{escaped(name)}</td>{''.join(f'<td class=text>{c}</td>' for c in cells)}</tr>")
    head = "".join(f"<th class=text>{escaped(run.name)}</th>" for run in runs)
    return f"<div class='wide'><table><tr><th></th>{head}</tr>{''.join(lines)}</table></div>"


def _content(run: Finished) -> str:
    found = run.results.get("content")
    return " ".join(f"{k} {v}" for k, v in found.items()) if isinstance(found, dict) else "-"


def _named(where: Callable[[Finished], Mapping[str, Any]], *names: str) -> Callable[[Finished], str]:
    """The values of some names, as far as they are there."""
    return lambda run: ", ".join(str(found[n]) for n in names if (found := where(run)).get(n) is not None) or "-"


_option = partial(_named, lambda run: run.options)
_environment = partial(_named, lambda run: run.folder.made_with())
CARD: Mapping[str, Callable[[Finished], str]] = {
    "folder": lambda run: run.folder.path.name,
    "tokenizer, recommender": _option("tokenizer", "recommender"),
    "split": lambda run: f"{run.options.get('split')} (hash {run.split})",
    "longest history": _option("max_his_len"),
    "beams": _option("num_beams"),
    "search": lambda run: ", ".join(f"{k} {run.options[k]}" for k in ("constrained", "legal_softmax")
                                    if k in run.options) or "all items scored",
    "seen items masked": _option("mask_seen"),
    "users with short histories": _option("short_users"),
    "checkpoint chosen by": lambda run: f"validation {run.options.get('valid_metric')}",
    "test evaluations": lambda run: str(run.results.get("test_evaluations", "-")),
    "content embeddings (text encoder)": _content,
    "precision": _option("mixed_precision"),
    "seed": _option("seed"),
    "commit": _environment("commit"),
    "versions": _environment("python", "torch", "numpy"),
    "machine": _environment("platform", "gpu"),
    "equal timestamps": lambda run: "order of the file",
    "equal scores": lambda run: "the target has the rank at which the list holds it",
}  # fmt: skip


# ---------------------------------------------------------------- curves


Figures = list[charts.Figure | charts.Picture | None]  # None: nothing was written down that it could show


def figures(parts: Figures) -> str:
    return f'<div class="figures">{"".join(p.html() for p in parts if p is not None)}</div>'


def together(runs: Sequence[Finished]) -> Figures:
    """One chart a figure, one curve a run."""
    chosen = str(runs[0].options.get("valid_metric"))
    wanted = {f"valid/{chosen}": f"validation {chosen}", "loss/rec": "recommendation loss",
              "collision_rate": "collision rate", "sid_changed_since_start": "items whose SID changed since the start",
              "noise_scale": "noise scale", "samples_per_s": "samples/s"}  # fmt: skip
    return [charts.lines(title, {run.name: run.curve(key) for run in runs}) for key, title in wanted.items()]


def training(run: Finished) -> Figures:
    """Everything that was written down epoch by epoch."""
    rec = {k: run.curve(k) for k in ("loss", "loss/rec")}
    rest = {k.removeprefix("loss/"): run.curve(k) for k in run.keys("loss/") if k != "loss/rec"}
    valid = {k.removeprefix("valid/"): run.curve(k) for k in run.keys("valid/")
             if "@" in k and k.count("/") == 1 and "coverage" not in k}  # fmt: skip
    valid = {k: v for i, (k, v) in enumerate(valid.items()) if v not in [*valid.values()][:i]}  # ndcg@1 is recall@1
    churn = {k.replace("_", " "): run.curve(k) for k in run.keys("sid_changed") + run.keys("codes_changed")}
    noise = run.curves("noise_scale/") or {"noise scale": run.curve("noise_scale")}
    share = {k.replace("_", " "): run.curve(k) for k in ("stochastic_share", "sampled_differs", "sid_agreement")}
    proof = [
        charts.lines(f"gradient of the recommendation loss at codebook {level[6:]}", run.curves(f"grad/{level}/"),
                     log=True)
        for level in dict.fromkeys(k.split("/")[1] for k in run.keys("grad/"))
    ]  # fmt: skip
    return [
        charts.lines("validation", valid),
        charts.lines("loss", rec),
        charts.lines("other terms of the loss", rest, log=True),
        *proof,
        charts.lines("noise scale", noise),
        charts.lines("share of items with noise, and with another sampled code", share),
        charts.lines("items whose SID changed in the epoch or since the start", churn),
        charts.lines("perplexity", run.curves("perplexity/")),
        charts.lines("collision rate", {"items": run.curve("collision_rate")}),
        charts.lines("probability that the sampled code is the nearest", run.curves("keep_probability/")),
        charts.lines("learning rate", run.curves("lr/"), log=True),
        charts.lines("samples/s", {"samples/s": run.curve("samples_per_s")}),
        charts.lines("peak memory, GB", {"GB": run.curve("peak_memory_gb")}),
    ]


# ---------------------------------------------------------------- semantic IDs


def usage(run: Finished) -> Figures:
    """Codes in use: over the epochs where the run has written them down, and at the end."""
    found: Figures = []
    for key in run.keys("code_count/"):
        columns = [row[key] for row in run.rows if isinstance(row.get(key), list)]
        if len({len(c) for c in columns}) == 1 and all(is_number(x) for c in columns for x in c):
            level = key.split("_")[-1]
            found.append(charts.heat(f"items of each code, level {level}", np.array(columns).T, "epochs", "codes"))
    places = max(map(len, run.sids))
    final = {}
    for place in range(places):
        counts = Counter(sid[place] for sid in run.sids if len(sid) > place)
        final[f"position {place + 1}"] = list(enumerate((float(n) for _, n in counts.most_common()), 1))
    return [*found, charts.lines("items of each token at the end, most used first", final, log=True, x_label="token")]


def groups(run: Finished) -> list[list[int]]:
    """Items that share all their codes, largest groups first; a dedup token, behind the levels or <z_...>, is none."""
    found: dict[tuple[str, ...], list[int]] = {}
    levels = len(run.keys("codes_used/level_")) or None
    for item, sid in enumerate(run.sids):
        codes = tuple(token for token in sid[:levels] if not token.startswith(ENDED))
        found.setdefault(codes, []).append(item)
    return sorted(found.values(), key=len, reverse=True)


def collisions(run: Finished) -> str:
    """How many items share their codes, and the largest groups by title."""
    all_groups = groups(run)
    sizes = Counter(map(len, all_groups))
    points = [(float(n), float(sizes[n])) for n in sorted(sizes)]
    chart = charts.lines("groups of items with equal codes, by size", {"groups": points}, x_label="items in a group")
    lines = []
    for group in [g for g in all_groups if len(g) > 1][:MOST_GROUPS]:
        sid = escaped(" ".join(run.sids[group[0]]))
        titles = "; ".join(run.label(i) for i in group[:12]) + (" ..." if len(group) > 12 else "")
        lines.append(f"<li><span class='sid'>{sid}</span> {len(group)} items: {titles}</li>")
    shown = f"<details><summary>largest groups of items with equal codes</summary><ul>{''.join(lines)}</ul></details>"
    return figures([chart]) + (shown if lines else "")


def tree(run: Finished) -> str:
    """The catalogue as a prefix tree, to be opened branch by branch."""
    order = sorted(range(len(run.sids)), key=lambda i: [_by_number(token) for token in run.sids[i]])
    shown, parts = 0, []
    for _, group in groupby(order, key=lambda i: run.sids[i][0]):
        items = list(group)
        if shown + len(items) > MOST_ITEMS:
            break
        shown += len(items)
        parts.append(_branch(run, items, 0))
    left = f"<p class='note'>{len(run.sids) - shown} more items are left out.</p>" if shown < len(run.sids) else ""
    heading = f"<summary>catalogue by semantic ID ({shown} of {len(run.sids)} items)</summary>"
    return f"<details>{heading}{''.join(parts)}{left}</details>"


def _by_number(token: str) -> tuple[int, str]:
    digits = "".join(c for c in token if c.isdecimal())
    return int(digits) if len(digits) < 19 and digits else 0, token


def _branch(run: Finished, items: list[int], place: int) -> str:
    """The items that share their first place + 1 tokens."""
    prefix = escaped(" ".join(run.sids[items[0]][: place + 1]))
    if len(items) == 1:
        whole = escaped(" ".join(run.sids[items[0]]))
        return f"<div><span class='sid'>{whole}</span> {run.label(items[0])}</div>"
    if any(len(run.sids[i]) == place + 1 for i in items):  # SIDs that end here
        inside = "".join(f"<div>{run.label(i)}</div>" for i in items)
    else:
        children = groupby(items, key=lambda i: run.sids[i][place + 1])
        inside = "".join(_branch(run, list(group), place + 1) for _, group in children)
    example = "; ".join(run.label(i) for i in items[:2])
    heading = f"<summary><span class='sid'>{prefix}</span> {len(items)} items: {example} ...</summary>"
    return f"<details>{heading}{inside}</details>"
