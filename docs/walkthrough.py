# %% [markdown]
# # One item's way
#
# One item of the demo goes from its title to a recommendation: text, embedding, residuals, semantic ID, neighbours,
# beam search. Then the codebooks are trained with the recommender, and the page shows what changed.
#
# This page is a notebook. `docs/walkthrough.py` opens as one in editors that know the percent format.
# `python scripts/notebook.py docs/walkthrough.py` runs it in about a minute and writes this page again.

# %%
import contextlib
import io
import sys
from pathlib import Path

ROOT = Path.cwd()
sys.path.insert(0, str(ROOT))  # the repository's folder

import numpy as np
import torch

import main
import settings
from compose import build, configure
from readers.dataset import read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from runs import charts
from runs.folder import RunFolder
from scripts.make_demo import build_demo
from serve.loaded import load

work = Path(globals().get("WORK", "scratch/walkthrough"))
pictures = Path(globals().get("PICTURES", "docs/pictures"))
quick = globals().get("QUICK", False)  # the tests train for a moment only


def picture(name, figure):
    (pictures / f"walkthrough-{name}.svg").write_text(figure if isinstance(figure, str) else figure.svg())
    print(f"![{name.replace('-', ' ')}](pictures/walkthrough-{name}.svg)")


# %% [markdown]
# ## 1. The item
#
# The demo is the made-up shop of `scripts/make_demo.py`: 3,000 users, 1,067 items. Our item is a tent.

# %%
build_demo(work / "dataset" / "demo")
data = read_dataset(DataOptions(dataset="demo", data_path=str(work / "dataset")))
titles = data.catalogue.titles
item = 3  # rows are numbered from 0, the network numbers items from 1
print(data.catalogue.ids[item], titles[item])

# %% [markdown]
# ## 2. Text to embedding
#
# A text encoder has turned each title and category into a vector. Items with similar texts have similar vectors. These
# are the five nearest by cosine:

# %%
content = np.array(read_embeddings(data), dtype=np.float32)
unit = content / np.linalg.norm(content, axis=1, keepdims=True)
cosine = unit @ unit[item]
print("embedding:", content.shape[1], "numbers, beginning", content[item, :4].round(3))
for other in np.argsort(-cosine)[1:6]:
    print(f"{cosine[other]:.2f}  {titles[other]}")

# %% [markdown]
# ## 3. Embedding to codes
#
# The RQ-VAE writes the embedding as three codes, one a level. Each level has a codebook of 64 vectors. It takes the
# nearest one and passes what is left, the residual, to the next level.

# %%
preset = settings.read_yaml(ROOT / "config" / "demo.yaml")
short = {"rqvae_epochs": 20 if quick else 200, "epochs": 1 if quick else 4, "eval_step": 1}
folders = {"data_path": str(work / "dataset"), "output_dir": str(work / "runs"), "log_dir": str(work / "logs")}


def silently(function, *args, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return function(*args, **kwargs)


def configured(**options):
    return configure.build(preset, {**folders, **short, "resume": "auto", "trackers": ["none"], **options})


cfg = configured(method="two_stage", run_name="two_stage")
silently(build.train_tokenizer, cfg, data)
tokenizer = build.tokenizer_of(cfg, data)
codes = tokenizer.encode(content)
print("codes of our item:", codes[item].tolist())

# %% [markdown]
# How much of the embedding is still missing after each level? 1 is everything. The first level finds the kind of
# product, the later ones refine it.

# %%
rebuilt = tokenizer.decode(codes).numpy()  # [items, levels, width], from the first 1, 2, 3 codes
spread = ((content - content.mean(0)) ** 2).sum(1)
missing = ((rebuilt - content[:, None]) ** 2).sum(2)
curve = {
    "our item": [(0, 1.0), *enumerate((missing[item] / spread[item]).tolist(), 1)],
    "mean of all items": [(0, 1.0), *enumerate((missing.sum(0) / spread.sum()).tolist(), 1)],
}
figure = charts.lines("share of the embedding that is missing", curve, x_label="levels")
picture("what-is-missing-after-each-level", figure)

# %% [markdown]
# ## 4. Codes to a semantic ID
#
# Items with equal codes get a dedup token at the end, so every semantic ID (SID) is unique. A 0 there means that no
# other item has these codes. Items with the same first codes are similar:

# %%
silently(main.train, cfg, data=data)
frozen = load(work / "runs" / "demo" / "two_stage" / "best_model.pth")
sids = frozen.model.sids.token_NP
print("SID of our item:", sids[item].tolist(), titles[item])
for depth in (3, 2, 1):
    same = (codes[:, :depth] == codes[item, :depth]).all(1).nonzero()[:, 0].tolist()
    print(f"\n{len(same)} items with the same first {depth} codes, for example")
    for other in [i for i in same if i != item][:3]:
        print("  ", sids[other].tolist(), titles[other])

# %% [markdown]
# ## 5. SIDs to a recommendation
#
# The recommender has learned to read the SIDs of a history and to generate the next one, token by token. A beam search
# keeps the best beginnings. Only tokens that continue an existing SID are scored. Here with three beams after our item:

# %%
model = frozen.model
model.eval()
history = torch.tensor([[item + 1]])
score = model.recommender.scorer(lambda number: model.sids.tokens(number).token, history)
trie = model.trie()
beams = [((), 0.0, 0)]  # tokens so far, log-probability, node of the trie
with torch.inference_mode():
    token = parent = None
    for position in range(len(trie.vocabulary)):
        node = torch.tensor([[beam[2] for beam in beams]])
        child = trie.children(position, node)
        logits = score(position, token, parent).view(1, len(beams), -1).gather(2, child.token)
        logits = logits.masked_fill(~child.there, -torch.inf).log_softmax(2)
        open_ = [
            ((*tokens, int(child.token[0, b, c])), p + float(logits[0, b, c]), int(child.node[0, b, c]), b)
            for b, (tokens, p, _) in enumerate(beams)
            for c in range(child.token.shape[2])
            if bool(child.there[0, b, c])
        ]
        best = sorted(open_, key=lambda beam: -beam[1])[:3]
        token, parent = torch.tensor([beam[0][-1] for beam in best]), torch.tensor([beam[3] for beam in best])
        beams = [beam[:3] for beam in best]
        print(f"after token {position + 1}:", ", ".join(f"{list(tokens)} {p:.2f}" for tokens, p, _ in beams))

# %% [markdown]
# Each finished SID is an item. The library does the same with 20 beams:

# %%
for hit in frozen.recommend([[data.catalogue.ids[item]]], k=5)[0]:
    print(f"{hit.score:7.2f}  {hit.title}")

# %% [markdown]
# ## 6. What joint training changes
#
# So far the SIDs were frozen. Now tokenizer and recommender learn together. The latent loss and the
# usage correction are on ([Beyond the paper](beyond-the-paper.md), 2.3 and 2.4). Codes move faster than in
# the preset, so that a few epochs show something.

# %%
moving = {"latent_loss": 1.0, "lr_id": 3e-4, "lr_offset": 3e-4, "recon_loss_weight": 0.0, "label_prior": "prefix"}
joint_cfg = configured(method="diger", uncertainty="frqud", run_name="joint", **moving)
joint = load(silently(main.train, joint_cfg, data=data).best)
new = joint.model.sids.token_NP
changed = (new[:, :3] != sids[:, :3]).any(1)
print(f"items with other codes: {changed.float().mean():.0%}")
print("our item before:", sids[item].tolist(), "after:", new[item].tolist())
for name, trained in {"before": frozen, "after": joint}.items():
    print(f"collisions {name}: {trained.model.sids.figures()['collision_rate']:.2f}")

# %% [markdown]
# Here is an item that moved to another group. With which items did it share two codes before, and with which now?

# %%
for moved in (new[:, :2] != sids[:, :2]).any(1).nonzero()[:1, 0].tolist():
    print(titles[moved])
    for name, table in {"before": sids, "after": new}.items():
        same = (table[:, :2] == table[moved, :2]).all(1).nonzero()[:, 0].tolist()
        print(f"  {name}: {len(same)} items,", "; ".join(titles[i] for i in same if i != moved)[:80], "...")

# %% [markdown]
# Joint training brings together what users take after each other. The picture shows the share of successive clicks in
# the training part whose two items have the same first 1, 2, 3 codes. It grows at two codes. At three it does not,
# because the usage correction makes it costly to share a whole code, and collisions fall.

# %%
train = data.train
before, after = train.items[train.position - 1] - 1, train.targets - 1  # two clicks in a row
together = {
    name: [(depth, float((table[before, :depth] == table[after, :depth]).all(1).float().mean())) for depth in (1, 2, 3)]
    for name, table in {"frozen SIDs": sids, "after joint training": new}.items()
}
figure = charts.lines("share of successive clicks", together, x_label="equal first codes")
picture("successive-clicks-with-equal-first-codes", figure)

# %% [markdown]
# Does that make better recommendations here? On the validation items, epoch by epoch:

# %%
curves = {}
for name in ("two_stage", "joint"):
    rows = RunFolder(work / "runs" / "demo" / name).rows()
    curves[name.replace("_", "-")] = [(row["epoch"], row["valid/ndcg@10"]) for row in rows if "valid/ndcg@10" in row]
picture("validation-ndcg-of-two-stage-and-joint", charts.lines("validation NDCG@10", curves))
for name, points in curves.items():
    print(f"{name:10} {points[-1][1]:.4f}")

# %% [markdown]
# Not here. One seed and a few epochs on made-up data prove nothing.
# [Results](results.md) has the comparisons that count.
