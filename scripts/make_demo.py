"""Generate 'demo', a small seeded data set on which every part of the project can be tried offline.

An invented shop sells 48 products in 12 departments, each product by 12 invented brands. Its
shoppers carry three signals, each worth something by itself and most of it together:

- popularity: item weights follow Zipf's law, and one step in ten ignores everything else;
- content: a shopper keeps to one brand for a while, and the title names brand and product;
- sequence: a product calls for certain next products (its successors in the goes-with chain).

    python scripts/make_demo.py --folder dataset/demo       run scripts and studies do it themselves

Leave-one-out Recall@10 at the default seed, items seen before masked: popularity .042, content
neighbours .090, the generator's own next-item distribution (favourite brand inferred from the
history) .61, which no model can beat but by luck.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runs.early  # noqa: F401

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

import settings
from utils import Problem, Unwritable, as_command, whole_folder, whole_number

FILES = INTERACTIONS, ITEMS, EMBEDDINGS = "demo.inter", "demo.items.jsonl", "demo.emb-text.npy"
EMBEDDING_SIZE = 64

N_USERS = 3000
MIN_LENGTH, MAX_LENGTH, MEAN_LENGTH = 5, 25, 9.5
ZIPF_EXPONENT = 0.6

# One step of a shopper: stay with the product, follow the chain, or take anything popular.
STAY, ANYTHING = 0.25, 0.10
SUCCESSORS = (0.40, 0.15, 0.10)  # likeliest first; with the two above they sum to 1
BRAND_LIFT = 50.0  # an item of the favourite brand weighs this much more
BRAND_DRIFT = 0.05  # per step, the favourite brand is drawn anew

BRANDS = (
    "Alder Creek",
    "Brindle Harbor",
    "Cobalt Heron",
    "Dusk Orchard",
    "Ember Quarry",
    "Fennel Ridge",
    "Gravel Sparrow",
    "Hollow Pine",
    "Ivory Lantern",
    "Juniper Foundry",
    "Kestrel Loft",
    "Larkspur Mill",
)


class Department(NamedTuple):
    finishes: tuple[str, ...]
    products: tuple[str, ...]  # all take a plain -s in the plural, for the category


DEPARTMENTS = {
    "Bags": Department(
        ("waxed canvas", "full-grain leather", "recycled nylon", "quilted cotton", "woven jute"),
        ("tote bag", "backpack", "duffel bag", "wallet"),
    ),
    "Cookware": Department(
        ("cast iron", "brushed steel", "enamelled", "hammered copper", "ceramic"),
        ("frying pan", "mixing bowl", "stock pot", "baking tray"),
    ),
    "Coffee & Tea": Department(
        ("stoneware", "double-walled", "matte black", "borosilicate glass", "hand-glazed"),
        ("espresso cup", "pour-over dripper", "teapot", "travel mug"),
    ),
    "Desk": Department(
        ("walnut", "cork", "grey linen", "powder-coated", "felt"),
        ("notebook", "pencil case", "desk lamp", "letter tray"),
    ),
    "Garden": Department(
        ("galvanised", "forest green", "weathered oak", "bamboo", "rust-proof"),
        ("hand trowel", "watering can", "plant pot", "bird feeder"),
    ),
    "Camping": Department(
        ("ultralight", "four-season", "compact", "rugged", "storm-proof"),
        ("sleeping bag", "two-person tent", "gas stove", "headlamp"),
    ),
    "Cycling": Department(
        ("reflective", "carbon", "aerodynamic", "all-weather", "neon yellow"),
        ("bike helmet", "pannier", "bike light", "tyre pump"),
    ),
    "Fitness": Department(
        ("natural rubber", "non-slip", "extra-firm", "textured", "neoprene"),
        ("yoga mat", "kettlebell", "foam roller", "resistance band"),
    ),
    "Bath": Department(
        ("lavender", "oat milk", "sea salt", "unscented", "eucalyptus"),
        ("soap bar", "hand cream", "bath bomb", "shampoo bottle"),
    ),
    "Bedding": Department(
        ("washed flax", "organic cotton", "merino wool", "mulberry silk", "flannel"),
        ("duvet cover", "pillowcase", "throw blanket", "mattress topper"),
    ),
    "Toys & Games": Department(
        ("pocket", "giant", "glow-in-the-dark", "woodland", "ocean-themed"),
        ("jigsaw puzzle", "board game", "building set", "plush bear"),
    ),
    "Music": Department(
        ("maple", "rosewood", "vintage", "midnight blue", "cherry red"),
        ("ukulele", "metronome", "music stand", "hand drum"),
    ),
}
PRODUCTS_PER_DEPARTMENT = 4
N_PRODUCTS = PRODUCTS_PER_DEPARTMENT * len(DEPARTMENTS)


class Catalog(NamedTuple):
    """I items, in product order."""

    titles: list[str]
    categories: list[str]
    product_I: NDArray[np.int64]
    brand_I: NDArray[np.int64]
    weight_I: NDArray[np.float64]  # popularity, sums to 1


def build_catalog(rng: np.random.Generator) -> Catalog:
    """Each brand sells each product in one to three finishes."""
    titles, categories, products, brands = [], [], [], []
    product = 0
    for name, department in DEPARTMENTS.items():
        for noun in department.products:
            for brand, brand_name in enumerate(BRANDS):
                n_items = rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2])
                for finish in rng.choice(department.finishes, n_items, replace=False):
                    titles.append(f"{brand_name} {finish} {noun}")
                    categories.append(f"{name}, {noun.title()}s")
                    products.append(product)
                    brands.append(brand)
            product += 1
    weight_I = rng.permutation(np.arange(1, len(titles) + 1) ** -ZIPF_EXPONENT)
    return Catalog(titles, categories, np.array(products), np.array(brands), weight_I / weight_I.sum())


def goes_with(rng: np.random.Generator) -> NDArray[np.float64]:
    """Chain over P products, [P, P]: probability of the next product, rows sum to 1 - ANYTHING.

    The likeliest successor is of the same department (so that content sees some of the chain)
    and the departments' products form rings (so that none is a dead end or out of reach).
    """
    chain_PP = STAY * np.eye(N_PRODUCTS)
    for first in range(0, N_PRODUCTS, PRODUCTS_PER_DEPARTMENT):
        ring = first + rng.permutation(PRODUCTS_PER_DEPARTMENT)
        chain_PP[ring, np.roll(ring, 1)] = SUCCESSORS[0]
        elsewhere = np.setdiff1d(np.arange(N_PRODUCTS), ring)
        for product in ring:
            others = rng.choice(elsewhere, len(SUCCESSORS) - 1, replace=False)
            chain_PP[product, others] = SUCCESSORS[1:]
    return chain_PP


def next_item_probability(
    catalog: Catalog,
    chain_PP: NDArray[np.float64],
    last_U: NDArray[np.int64],
    brand_U: NDArray[np.int64],
    seen_UI: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Probability [U, I] of each item after item last_U, for shoppers who favour brand_U."""
    popular_UI = np.where(seen_UI, 0.0, catalog.weight_I)
    liked_UI = popular_UI * np.where(catalog.brand_I == brand_U[:, None], BRAND_LIFT, 1.0)
    # Items are in product order, so a product's total is the sum of one slice.
    starts_P = np.searchsorted(catalog.product_I, np.arange(N_PRODUCTS))
    total_UP = np.add.reduceat(liked_UI, starts_P, axis=1)
    # A product whose items were all taken has total 0: its share falls to the others.
    chain_UP = chain_PP[catalog.product_I[last_U]] / np.where(total_UP > 0, total_UP, 1.0)
    by_chain_UI = liked_UI * chain_UP[:, catalog.product_I]
    by_popularity_UI = popular_UI * (ANYTHING / popular_UI.sum(1, keepdims=True))
    probability_UI: NDArray[np.float64] = by_chain_UI + by_popularity_UI
    probability_UI /= probability_UI.sum(1, keepdims=True)
    return probability_UI


def draw(probability_UI: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """One item for each row. Items of probability 0 are never drawn."""
    cumulative_UI = probability_UI.cumsum(1)
    threshold_U = rng.random(len(cumulative_UI)) * cumulative_UI[:, -1]
    item_U: NDArray[np.int64] = (cumulative_UI <= threshold_U[:, None]).sum(1)
    return item_U


def simulate(catalog: Catalog, chain_PP: NDArray[np.float64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """One history for each of N_USERS shoppers: rows of the catalogue, oldest first, no repeats."""
    extra_U = rng.geometric(1 / (MEAN_LENGTH - MIN_LENGTH + 1), N_USERS) - 1
    length_U = np.minimum(MIN_LENGTH + extra_U, MAX_LENGTH)
    brand_U = rng.integers(len(BRANDS), size=N_USERS)
    seen_UI = np.zeros((N_USERS, len(catalog.titles)), bool)
    history_UT = np.full((N_USERS, MAX_LENGTH), -1)
    history_UT[:, 0] = rng.choice(len(catalog.titles), N_USERS, p=catalog.weight_I)
    for step in range(1, MAX_LENGTH):
        user_A = np.flatnonzero(length_U > step)  # those who go on
        last_A = history_UT[user_A, step - 1]
        seen_UI[user_A, last_A] = True
        drifts_U = rng.random(N_USERS) < BRAND_DRIFT
        brand_U = np.where(drifts_U, rng.integers(len(BRANDS), size=N_USERS), brand_U)
        probability_AI = next_item_probability(catalog, chain_PP, last_A, brand_U[user_A], seen_UI[user_A])
        history_UT[user_A, step] = draw(probability_AI, rng)
    return [history[:length] for history, length in zip(history_UT, length_U, strict=True)]


def embed(texts: list[str]) -> NDArray[np.float32]:
    """TF-IDF of the words, reduced to [len(texts), EMBEDDING_SIZE], rows of length 1."""
    tfidf = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    # ARPACK: unlike the randomized solver its bits do not depend on the number of BLAS threads.
    svd = TruncatedSVD(EMBEDDING_SIZE, algorithm="arpack", random_state=0)
    vectors: NDArray[np.float64] = svd.fit_transform(tfidf)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def write_files(folder: Path, catalog: Catalog, histories: list[NDArray[np.int64]]) -> None:
    """Write the three files. Items nobody took are left out, the others numbered as they come."""
    taken, first = np.unique(np.concatenate(histories), return_index=True)
    order = taken[np.argsort(first)]
    item_id = {row: f"i{number}" for number, row in enumerate(order.tolist())}

    with (folder / INTERACTIONS).open("w", encoding="utf-8", newline="\n") as f:
        f.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, history in enumerate(histories):
            for time, row in enumerate(history.tolist()):
                f.write(f"u{user}\t{item_id[row]}\t{time}\n")

    with (folder / ITEMS).open("w", encoding="utf-8", newline="\n") as f:
        for row, name in item_id.items():
            item = {
                "item_id": name,
                "title": catalog.titles[row],
                "categories": catalog.categories[row],
            }
            f.write(json.dumps(item) + "\n")

    vectors = embed([f"{catalog.titles[row]}. {catalog.categories[row]}" for row in item_id])
    np.save(folder / EMBEDDINGS, vectors)


def is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def build_demo(folder: Path, seed: int = 2020) -> None:
    """Write the demo data set into `folder`; the same seed gives the same bytes.

    A complete data set that is already there is left alone, whatever its seed. The folder
    appears under its name only when all files are in it.
    """
    if is_complete(folder):
        return
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is neither empty nor a complete demo data set; remove it")
    rng = np.random.default_rng(seed)
    catalog = build_catalog(rng)
    histories = simulate(catalog, goes_with(rng), rng)

    try:
        with whole_folder(folder) as draft:
            write_files(draft, catalog, histories)
    except Unwritable:
        if not is_complete(folder):  # unless another process was faster
            raise


def run(argv: list[str]) -> None:
    """The command; a complete demo folder is left as it is."""
    words, given, _ = settings.command(argv, {}, ["folder", "seed"])
    folder, seed = Path(given.get("folder", "dataset/demo")), whole_number(given.get("seed", "2020"))
    if words or seed is None:
        raise Problem("make_demo: takes --folder DIR and --seed NUMBER, a whole number from 0 of at most 15 digits")
    there = is_complete(folder)
    build_demo(folder, seed)
    print(f"{folder} is complete already; left alone" if there else f"{folder}: {N_USERS} users, seed {seed}")


if __name__ == "__main__":
    as_command(__doc__, run)
