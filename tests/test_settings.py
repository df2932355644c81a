"""Every way to get an option wrong stops the run with a line that names it."""

import contextlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

import settings
from compose import cli, configure, parts
from compose.parts import MethodOptions
from compose.retired import RETIRED
from joint.uncertainty import UncertaintyOptions
from readers.splits import DataOptions
from runs.folder import RunOptions
from trainer import TrainOptions
from utils import Problem

ROOT = Path(settings.__file__).parent


def words(text):
    return text.split()


# The published YAML files and command lines, kept under their names ...
KEPT = words("""dataset seed log_dir semantic_emb_path epochs
lr_rec lr_id weight_decay gumbel_tau code_loss_weight recon_loss_weight vq_loss_weight warmup_steps batch_size
eval_batch_size eval_step data_path gradient_accumulation_steps max_his_len
early_stop metrics valid_metric encoder_layers decoder_layers d_model d_ff num_heads d_kv dropout_rate num_beams
rqvae_path num_emb_list beta e_dim layers sk_epsilons kmeans_iters
hot_threshold_ratio usage_momentum initial_std sigma_lambda auto_lambda_mode freeze_id_encoder
tau_anneal_min tau_anneal_rate""")
# ... or left out with a warning, because they did nothing there ...
IDLE = words("""sim alpha tau loss_type vq_type max_length feed_forward_proj reproducibility joint_optimization
freeze_semantic_embedding freeze_id_decoder use_gate_network use_soft_frequency balance_loss_weight
gumbel_hard_switch_epoch stop_gumbel_sampling_epoch bn""")
# ... or because they have one value here (another one is refused) ...
SETTLED = {
    "code_num": 256, "code_length": 4, "sk_iters": 50, "map_path": "data/demo.emb_map.json", "dist": "L2",
    "dropout_prob": 0.0, "kmeans_init": True, "tau_anneal_init": 2.0, "learner": "AdamW", "lr_scheduler_type": "Cosine",
    "activation_function": "relu", "use_indicator_ste": True, "freeze_rq": False, "freeze_id_encoder_layers": 0,
    "freeze_id_epochs": 0,
}  # fmt: skip
BY_FILES = ["semantic_hidden_size", "num_workers"]
# ... or spelled otherwise here.
RENAMED = {
    "use_adaptive_selection": "frqud", "use_learnable_sigma_gumbel": "sdud", "use_pure_ste": "none",
    "use_tau_annealing": "tau_annealing",
}  # fmt: skip


def load_text(tmp_path, text, *overrides):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return configure.load(path, overrides)


# ---------------------------------------------------------------- wrong values

WRONG = {
    # unknown, with the nearest known one
    "num_beam=10": r"'num_beam'.*did you mean 'num_beams'",
    "rqvae_epoch=3": r"'rqvae_epoch'.*did you mean 'rqvae_epochs'",
    "Epochs=3": r"'Epochs'.*did you mean 'epochs'",
    "qqqqzzzz=3": r"'qqqqzzzz'.*--help",
    "=3": r"unknown option ''",
    # wrong type
    "epochs=ten": r"epochs: expected a whole number, got 'ten'",
    "epochs=1.5": r"epochs: expected a whole number, got 1\.5",
    "epochs=1e3": r"epochs: expected a whole number, got '1e3'",
    "epochs=": r"epochs: expected a whole number, got None",
    "epochs=[3]": r"epochs: expected a whole number, got \[3\]",
    "epochs=true": r"epochs: expected a whole number, got True",
    "seed=false": r"seed: expected a whole number, got False",
    "num_emb_list=[8, true, 8]": r"num_emb_list: expected a whole number, got True",
    "lr_rec=fast": r"lr_rec: expected a number, got 'fast'",
    "lr_rec=true": r"lr_rec: expected a number, got True",
    "logit_scale=true": r"logit_scale: expected a number, got True",
    "logit_scale=automatic": r"logit_scale: expected a number, got 'automatic'",
    "mask_seen=maybe": r"mask_seen: expected true or false, got 'maybe'",
    "mask_seen=1": r"mask_seen: expected true or false, got 1",
    "rqvae_path=[a]": r"rqvae_path: expected text, got \['a'\]",
    "layers=16": r"layers: expected a list, got 16",
    "layers=[16, wide]": r"layers: expected a whole number, got 'wide'",
    "uncertainty=FrqUD": r"uncertainty: expected one of none, .*frqud.*, got 'FrqUD'",
    "mixed_precision=true": r"mixed_precision: expected one of no, bf16, fp16, got True",
    # out of range
    "epochs=0": r"epochs: must be at least 1, got 0",
    "seed=-1": r"seed: must be at least 0, got -1",
    "seed=2147483648": r"seed: must be at most 2147483647, got",  # faiss takes 32 bits
    "dropout_rate=0.95": r"dropout_rate: must be at most 0\.9, got 0\.95",
    "usage_momentum=1.01": r"usage_momentum: must be at most 1, got 1\.01",
    "lr_rec=0": r"lr_rec: must be above 0, got 0",
    "logit_scale=-2": r"logit_scale: must be above 0, got -2",
    "num_emb_list=[8, 1, 8]": r"num_emb_list: must be at least 2, got 1",
    "lr_rec=.nan": r"lr_rec: must be finite",
    "lr_rec=1e999": r"lr_rec: must be finite",
    # lists of the wrong length, options that disagree
    "num_emb_list=[]": r"num_emb_list: needs at least one level",
    "sk_epsilons=[0.1, 0.001, 0.1]": r"sk_epsilons: 0\.001 overflows",
    "sk_epsilons=[0.1, 0.1]": r"sk_epsilons: .*3.*\[0\.1, 0\.1\]",
    "num_beams=9": r"num_beams: 9 is below .*10",
    "valid_metric=ndcg@20": r"valid_metric: 'ndcg@20' is not among metrics",
    "valid_metric=hits": r"metrics: 'hits' is not one of",
    "metrics=[]": r"valid_metric: .*not among metrics",
    "metrics=[ndcg@10, precision@10]": r"metrics: 'precision@10' is not one of",
    "metrics=[ndcg@10, recall@0]": r"metrics: 'recall@0'",
    "metrics=[ndcg@10, recall@²]": r"metrics: 'recall@²'",
    "tau_anneal_min=3": r"tau_anneal_min: is read with uncertainty: tau_annealing only",
    "run_name=a/b": r"run_name: 'a/b' is not a plain name",
    "run_name=..": r"run_name: '\.\.' is not a plain name",
    "run_name=''": r"run_name: '' is not a plain name",
    "dataset=../beauty": r"dataset: '\.\./beauty' is not a plain name",
}


@pytest.mark.parametrize("given_", WRONG)
def test_a_wrong_option_is_refused_by_name_and_value(given_):
    with pytest.raises(Problem, match=WRONG[given_]):
        configure.load(None, [f"--{given_}"])


@pytest.mark.parametrize("text", ["num_beam: 10", "epochs: ten", "epochs: true", "lr_rec: 0", "num_beams: 9"])
def test_the_file_is_held_to_the_same_rules(tmp_path, text):
    with pytest.raises(Problem, match=WRONG[text.replace(": ", "=")]):
        load_text(tmp_path, text)


@pytest.mark.parametrize("words", [["--epochs", "3"], ["epochs=3"], ["-epochs=3"], ["--mask_seen"]])
def test_options_are_written_with_an_equals_sign(words):
    with pytest.raises(Problem, match=rf"{re.escape(repr(words[0]))}: write options as --key=value"):
        configure.load(None, words)


def test_given_twice_on_the_command_line():
    with pytest.raises(Problem, match="--epochs: given twice"):
        configure.load(None, ["--epochs=3", "--seed=1", "--epochs=4"])


def test_given_twice_with_one_value(tmp_path, caplog):
    cfg = load_text(tmp_path, "epochs: 3\nseed: 1\nepochs: 3\n", "--d_ff=8", "--d_ff=8")
    assert (cfg[TrainOptions].epochs, settings.flat(cfg)["d_ff"]) == (3, 8)
    assert "given twice with the same value: epochs" in caplog.text
    assert "--d_ff: given twice with the same value" in caplog.text


@pytest.mark.parametrize("text", ["epochs: 3\nseed: 1\nepochs: 2\n", "{seed: 1, epochs: 3, epochs: 4}"])
def test_given_twice_in_the_file(tmp_path, text):
    with pytest.raises(Problem, match="given twice: epochs"):
        load_text(tmp_path, text)


@pytest.mark.parametrize("text", ["- epochs", "epochs", "3: 4", "epochs: [", "a: b: c", "\x07", "[" * 500])
def test_a_file_that_is_no_list_of_options(tmp_path, text):
    with pytest.raises(Problem, match=r"c\.yaml: "):
        load_text(tmp_path, text)


def test_a_file_that_is_not_text_or_not_there(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"run_name: \xff\xfe")
    with pytest.raises(Problem, match=r"c\.yaml: not readable"):
        configure.load(tmp_path / "c.yaml")
    with pytest.raises(Problem, match=r"gone\.yaml: no such configuration file"):
        configure.load(tmp_path / "gone.yaml")
    with pytest.raises(Problem, match="not readable"):
        configure.load(tmp_path)


# ---------------------------------------------------------------- right values


@pytest.mark.parametrize(
    ("text", "name", "want"),
    [
        ("lr_rec: 1e-3", "lr_rec", 0.001),  # a string to PyYAML
        ("lr_rec: 1E-3", "lr_rec", 0.001),
        ("lr_rec: 2", "lr_rec", 2.0),
        ("sk_epsilons: [2e-3, 0, 3e-3]", "sk_epsilons", [0.002, 0.0, 0.003]),
        ("epochs: 1.0e+3", "epochs", 1000),  # a float to PyYAML
        ("mixed_precision: no", "mixed_precision", "no"),  # false to PyYAML
        ("resume: no", "resume", "no"),
        ("mask_seen: yes", "mask_seen", True),
        ("dataset: 2014", "dataset", "2014"),
        ("logit_scale: auto", "logit_scale", "auto"),
        ("logit_scale: 1", "logit_scale", 1.0),
        ("id_last_epoch: null", "id_last_epoch", None),
        ("metrics: recall@5,ndcg@10", "metrics", ["recall@5", "ndcg@10"]),  # as published
    ],
)
def test_values_mean_what_they_say(tmp_path, text, name, want):
    found = settings.flat(load_text(tmp_path, text))[name]
    assert found == want
    assert type(found) is type(want)


def test_the_command_line_goes_before_the_file_and_the_file_before_the_default(tmp_path):
    cfg = load_text(tmp_path, "epochs: 3\nseed: 4\n", "--epochs=5")
    assert (cfg[TrainOptions].epochs, cfg[DataOptions].seed, cfg[TrainOptions].early_stop) == (5, 4, 15)


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load_text(tmp_path, "# nothing\n") == configure.load(None)


names = st.from_regex(r"[A-Za-z0-9_~+-][A-Za-z0-9_.~+: é-]{0,12}", fullmatch=True)
positive = st.floats(min_value=1e-300, max_value=1e300)


@st.composite
def options(draw):
    levels = draw(st.integers(1, 4))
    optional = {
        "seed": st.integers(0, 2**31 - 1),
        "dataset": names,
        "run_name": names | st.none(),
        "semantic_emb_path": st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]),
        min_size=1) | st.none(),
        "lr_rec": positive, "beta": positive,
        "logit_scale": positive | st.just("auto"),
        "mask_seen": st.booleans(), "resume": st.sampled_from(["no", "auto"]),
        "uncertainty": st.sampled_from(["none", "gumbel", "frqud_sdud"]),
        "layers": st.lists(st.integers(1, 4096), max_size=4), "id_last_epoch": st.integers(0, 99) | st.none(),
        "metrics": st.permutations(["ndcg@10", "recall@10", "mrr@3", "coverage@20"]),
    }  # fmt: skip
    rest = draw(st.fixed_dictionaries({}, optional=optional))
    if rest.get("run_name") is None:  # there is nothing to resume without a name
        rest.pop("resume", None)
    return {
        "num_emb_list": draw(st.lists(st.integers(2, 999), min_size=levels, max_size=levels)),
        "sk_epsilons": draw(st.lists(st.floats(0.0015, 1), min_size=levels, max_size=levels)),
        **rest,
    }


@effort(max_examples=30)
@given(raw=options())
def test_a_saved_configuration_loads_equal(tmp_path_factory, raw):
    cfg = configure.build(raw)
    path = tmp_path_factory.getbasetemp() / "saved.yaml"
    path.write_text(settings.dump(cfg), encoding="utf-8")
    assert configure.load(path) == cfg
    assert {k: v for k, v in settings.flat(cfg).items() if k in raw} == raw


def test_resuming_needs_a_name():
    with pytest.raises(Problem, match="resume: auto needs a run_name"):
        configure.load(None, ["--resume=auto"])


def test_replace_checks_what_it_changes():
    cfg = configure.load(None)
    assert configure.change(cfg, run_name="x")[RunOptions].run_name == "x"
    with pytest.raises(Problem, match="num_beams: 5"):
        configure.change(cfg, num_beams=5)


# ---------------------------------------------------------------- the list of options


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_configuration_loads(path):
    assert configure.load(path)[MethodOptions].method in parts.METHODS


def holders(text):
    """Pattern of what holds options in a file: cfg, cfg[SomeOptions], and the letters that stand for such."""
    given = [line.partition("=")[0] for line in text.splitlines() if re.search(r"= .*\w+(Options\]|\.cfg\b)", line)]
    letters = set(re.findall(r"\b[a-z]\b", " ".join(given))) | set(re.findall(r"\b([a-z]): \w*Options\b", text))
    return rf"(?:\b(?:{'|'.join(['cfg', 'options', 'joint', *sorted(letters)])})|\w+Options\])"


def test_every_option_is_read_somewhere():
    """From what holds options, or by its own dataclass: other things have a `length` or a `name` too."""
    folders = (".", "sids", "recommenders", "joint", "compose", "readers", "runs", "scripts")
    found = set()
    for path in (p for folder in folders for p in (ROOT / folder).glob("*.py")):
        text = path.read_text()
        found |= {*re.findall(rf"{holders(text)}\.(\w+)\b(?!\()", text), *re.findall(r"get\(\"(\w+)\"", text)}

    def is_read_by_itself(name, kinds):
        own = [inspect.getsource(c) for kind in kinds for c in kind.__mro__[:-1]]
        return any(re.search(rf"\bself\.{name}\b(?!\()", text) for text in own)

    lacking = {name: kinds.values() for name, kinds in parts.owners().items() if name not in found}
    assert [name for name, kinds in lacking.items() if not is_read_by_itself(name, kinds)] == []


@pytest.mark.parametrize("name", KEPT)
def test_a_published_key_is_kept(name):
    default = settings.flat(configure.load(None))[name]
    assert settings.flat(configure.build({name: default}))[name] == default


@pytest.mark.parametrize(("name", "value"), [*((k, 1) for k in [*IDLE, *BY_FILES]), *SETTLED.items()])
def test_a_published_key_without_effect_is_left_out_with_a_warning(name, value, caplog):
    assert configure.build({name: value, "dataset": "demo"}) == configure.build({"dataset": "demo"})
    assert configure.build({"dataset": "demo"}, {name: value}) == configure.build({"dataset": "demo"})
    assert len(caplog.messages) == 2
    assert all(line.startswith(f"without effect here, left out: {name}") for line in caplog.messages)


@pytest.mark.parametrize("name", [k for k in SETTLED if k != "freeze_id_epochs"])
def test_another_value_than_the_one_there_is_here_is_refused(name):
    with pytest.raises(Problem, match=f"option '{name}' .*"):
        configure.build({name: "other"})
    with pytest.raises(Problem, match=f"option '{name}' .*says 7"):
        configure.build({}, {name: 7})


@pytest.mark.parametrize("name", RENAMED)
def test_a_published_spelling_is_understood(name):
    for sources in [({name: True}, {}), ({}, {name: True}), ({"uncertainty": "gaussian"}, {name: True})]:
        assert configure.build(*sources)[UncertaintyOptions].uncertainty == RENAMED[name]
    typed = configure.build({name: True}, {"uncertainty": "gaussian"})
    assert typed[UncertaintyOptions].uncertainty == "gaussian"
    with pytest.raises(Problem, match=f"{name}: True: is uncertainty: {RENAMED[name]} here, .*'gaussian'"):
        configure.build({name: True, "uncertainty": "gaussian"})
    with pytest.raises(Problem, match=f"option '{name}' .*uncertainty=.*'maybe'"):
        configure.build({name: "maybe"})


@pytest.mark.parametrize(("said", "name"), [
    ({"use_adaptive_selection": True, "use_learnable_sigma_gumbel": True}, "frqud_sdud"),
    ({"use_adaptive_selection": False, "use_learnable_sigma_gumbel": True}, "sdud"),
    ({"use_adaptive_selection": False, "use_learnable_sigma_gumbel": False}, "gumbel"),
    ({"noise_type": "Gaussian"}, "gaussian"), ({"noise_type": "gumbel", "use_adaptive_selection": True}, "frqud"),
])  # fmt: skip
def test_published_keys_of_the_noise_together(said, name):
    assert configure.build(said)[UncertaintyOptions].uncertainty == name


def test_everything_wrong_is_told_at_once(tmp_path):
    with pytest.raises(Problem) as told:
        load_text(tmp_path, "num_beam: 3\ndist: cosine\nepochs: ten\nrqvae_path: <PATH_TO_RQVAE>\n", "--lr_rec=0")
    for part in (r"'num_beam'", r"'dist' .*'cosine'", "epochs: .*'ten'", "rqvae_path: .*placeholder", "lr_rec: "):
        assert re.search(part, str(told.value))
    with pytest.raises(Problem, match=r"epochs.*write options as --key=value; --seed: given twice"):
        configure.parse_overrides(["epochs", "--seed=1", "--seed=2"])


@pytest.mark.parametrize(("preset", "typed", "then"), [
    ("scientific", "--gradient=detached", {"gradient": "detached", "label_prior": "none"}),
    ("scientific", "--constrained=false --item_rank=0", {"legal_softmax": False, "collision": "suffix"}),
    ("scientific", "--id_first_epoch=15", {"id_first_epoch": 15, "id_last_epoch": None}),
    ("beauty", "--metrics=ndcg@10,recall@50", {"num_beams": 50}),
])  # fmt: skip
def test_what_is_typed_goes_before_a_preset(preset, typed, then, caplog):
    found = settings.flat(configure.load(ROOT / "config" / f"{preset}.yaml", typed.split()))
    assert {k: found[k] for k in then} == then
    assert "the preset gives way to what was typed" in caplog.text


def legal(kind, name):
    """Values of an option: all there are, or the least, twice the usual one and a large one."""
    want, field, usual = settings.hints(kind)[name], settings.fields_of(kind)[name], getattr(kind(), name)
    kinds = [] if get_origin(want) is list else get_args(want) or [want]
    found = [v for w in (want, *get_args(want)) if get_origin(w) is Literal for v in get_args(w)]
    found += [None] * (type(None) in kinds) + [True, False] * (bool in kinds)
    known = {"method": parts.METHODS, "tokenizer": parts.TOKENIZERS, "recommender": parts.NETWORKS}
    found += known.get(name, ["x"] * (str in kinds and name not in ("lm_path", "valid_metric")))
    if {int, float} & {*kinds}:
        twice = 2 * usual if isinstance(usual, int | float) and usual else 4
        found += [field.metadata.get("ge", 0), min(twice, field.metadata.get("le", twice))]
    return found + LISTS.get(name, [])


LISTS = {"metrics": [["recall@5"], ["ndcg@50", "recall@1"]], "num_emb_list": [[8], [8, 8], [8] * 4],
         "sk_epsilons": [[0.0], [0.5] * 4]}  # fmt: skip
NO_WAY = {  # what a person alone can say, or a value that fits nothing
    "resume": "resume: auto needs a run_name", "lm_revision": "; drop it", "dataset": "x was asked for",
    "target_length": "lower it, or give num_emb_list more levels|; drop it",
}  # fmt: skip


def assert_way_out(preset, name, value):
    """Is an option accepted, or does its error name options with which it is?"""
    try:
        configure.build(preset, {name: value})
    except Problem as e:
        told, _, advice = str(e).removesuffix(", or drop it").rpartition("; add ")
        assert told or re.search(NO_WAY[name], advice), e
        for way in advice.split(" or ") if told else []:
            more = configure.parse_overrides(way.split())
            assert more and name not in more, e
            configure.build(preset, {name: value, **more})


PRESETS = {"defaults": {}, **{p.stem: settings.read_yaml(p) for p in sorted((ROOT / "config").glob("*.yaml"))}}
FIRST = {str(parts.composition(preset, {})): name for name, preset in reversed(PRESETS.items())}  # of the same parts


@pytest.mark.parametrize("preset", PRESETS)
def test_every_refusal_of_an_option_names_a_way_out_that_works(preset):
    """Each option in turn with other values, over each preset; of parts that the run lacks, every third with one value;
    over a preset whose parts another has as well, only words, truths and lists.
    """
    options, first, place = PRESETS[preset], preset in FIRST.values(), [*PRESETS].index(preset)
    own = {k for kind in parts.sections(parts.composition(options, {})).values() for k in settings.fields_of(kind)}
    for number, (name, kinds) in enumerate(parts.owners().items()):
        for kind in kinds.values():
            values = []
            for value in legal(kind, name):
                with contextlib.suppress(Problem):
                    settings.check_value(kind, name, value)
                    values += [value] * (first or (not isinstance(value, float) and type(value) is not int))
            for value in values if name in own else values[-1:] * (first and (number + place) % 3 == 0):
                assert_way_out(options, name, value)


@pytest.mark.parametrize(("typed", "advice"), [
    (["--label_prior=usage", "--gradient=detached"], ""),
    (["--initial_std=3", "--method=diger"], "--uncertainty=sdud or --uncertainty=frqud_sdud, or drop it"),
    (["--gumbel_tau=0.3", "--uncertainty=tau_annealing"], "--tau_anneal_min=0.3"),
    (["--recommender=rq_transformer", "--d_model=102", "--num_heads=8"], ""),
    (["--num_beams=5"], "--metrics=recall@1,recall@5,ndcg@1,ndcg@5 --valid_metric=ndcg@5"),
    (["--tokenizer=dvae", "--length_cost=3"], "--method=two_stage --length=learned"), (["--tokenizer=x"], None),
    (["--collision_cap=3"], "--collision=knn --method=two_stage or --collision=random --method=two_stage, or drop it"),
    (["--dvae_width=9", "--method=sasrec"], None), (["--em_every=2", "--decoding=multi"], None),
])  # fmt: skip
def test_the_way_out_is_whole_and_leaves_what_was_typed(typed, advice):
    with pytest.raises(Problem) as told:
        configure.load(None, typed)
    assert str(told.value).rpartition("; add ")[2] == advice or (not advice and "; add " not in str(told.value))


def test_a_preset_that_contradicts_itself_is_refused(tmp_path):
    with pytest.raises(Problem, match=r"label_prior: .*; add --label_prior=none or --gradient=end_to_end$"):
        load_text(tmp_path, "label_prior: usage\ngradient: detached\n", "--seed=1")


PUBLISHED = ROOT / "tests" / "published.yaml"  # the keys of a published preset, some of them twice
SCRIPT = words("""--rqvae_path=x.pth --lr_rec=1e-3 --gumbel_tau=2 --epochs=120 --freeze_semantic_embedding=true
--freeze_id_encoder=true --freeze_id_encoder_layers=0 --freeze_id_decoder=true --freeze_id_epochs=0 --freeze_rq=false
--gumbel_hard_switch_epoch=0 --use_learnable_sigma_gumbel=false --stop_gumbel_sampling_epoch=0 --balance_loss_weight=0
--use_adaptive_selection=true --hot_threshold_ratio=1.5 --use_soft_frequency=false --use_gate_network=false""")


def test_a_published_preset_and_command_line_run_as_they_are(caplog):
    cfg = settings.flat(configure.load(PUBLISHED, SCRIPT))
    wanted = {"uncertainty": "frqud", "rqvae_path": "x.pth", "id_first_epoch": 0, "num_emb_list": [256] * 3}
    assert {k: cfg[k] for k in wanted} == wanted
    assert len(caplog.messages) == 2  # keys given twice, keys without effect
    with pytest.raises(Problem, match=r"rqvae_path: '<PATH_TO_RQVAE_CHECKPOINT>' is a placeholder"):
        configure.load(PUBLISHED)


ANSWERED = [
    "use_soft_frequency",
    "balance_loss_weight",
    "gumbel_hard_switch_epoch",
    "stop_gumbel_sampling_epoch",
    *RENAMED,
]


@pytest.mark.parametrize("name", ANSWERED)
def test_what_replaces_an_old_key_exists(name):
    """Every option and value that the sentence recommends is itself accepted."""
    sentence = RETIRED[name].replace(name, "")
    advice = {(k, v) for k, v in re.findall(r"\b(\w+)=(\w+)", sentence)} | {
        (k, None) for k in re.findall(r"\bhot_\w+", sentence)
    }
    assert advice
    for key, value in advice:
        known = settings.flat(configure.load(None, [f"--{key}={value}"] if value else []))
        assert value in (None, known[key])


def test_help_shows_every_option_with_its_default():
    text = cli.help_text()
    for name, value in settings.flat(configure.load(None)).items():
        assert f"--{name}={'-' if value is None else value}\n" in text


@dataclass(frozen=True, kw_only=True)
class Shop:
    name: str | None = settings.option(None, "text")
    size: int = settings.option(1, "number", ge=1)
    parts: list[str] = settings.option([], "list")


def test_a_command_of_its_own_options():
    """Values behind = or as the next word, text as it stands, plain words in their order."""
    argv = ["a", "--name", "{x}: 007", "--size=3", "b", "--out", "d/2014", "--parts", "p,q"]
    plain, named, cfg = settings.command(argv, {"shop": Shop}, ["out", "to"])
    assert (plain, named) == (["a", "b"], {"out": "d/2014"})
    assert cfg[Shop] == Shop(name="{x}: 007", size=3, parts=["p", "q"])


@pytest.mark.parametrize(("argv", "message"), [
    (["--nam=x"], "did you mean 'name'"), (["--size"], "--size: needs a value"),
    (["--size=0"], "size: must be at least 1"),
    (["--out=a", "--out", "b"], "--out: given twice"), (["--size", "x"], "size: expected"),
])  # fmt: skip
def test_a_wrong_command_is_one_line(argv, message):
    with pytest.raises(Problem, match=message):
        settings.command(argv, {"shop": Shop}, ["out"])


def test_no_option_has_the_name_of_a_retired_one():
    """Its sentence would never be said, and an old file would be read with another meaning."""
    assert not RETIRED.keys() & parts.owners().keys()
