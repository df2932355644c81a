"""The seams: three tokenizers, two networks, one door; options belong to parts."""

import re
import threading

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_at, words
from helpers import LM, contents

import main
import scripts.pretrain
import settings
from compose import build, cli, configure, parts, restore
from readers.dataset import read_embeddings
from readers.layouts import read_dataset
from readers.splits import DataOptions
from serve.loaded import load
from sids.fit import measure
from sids.rq_kmeans import RQKMeans
from sids.tokenizer import Source
from utils import Problem, read_checkpoint, read_json


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    options = tiny_at(root) | {"epochs": 1, "method": "two_stage"}
    (root / "c.yaml").write_text(yaml.safe_dump(options))
    return root, options


@pytest.fixture(scope="module", params=["rqvae", "rq_kmeans", "random_codes"])
def run(request, place):
    """A two-stage run on each kind of tokenizer, pre-trained by the one command."""
    root, _ = place
    config = f"--config={root / 'c.yaml'}"
    scripts.pretrain.run([config, f"--tokenizer={request.param}"])
    main.main([config, f"--tokenizer={request.param}", f"--run_name={request.param}"])
    return request.param, root / "out" / "tiny" / request.param


# ---------------------------------------------------------------- tokenizers


def test_every_tokenizer_trains_a_recommender_and_travels_with_it(run):
    """Its codes can be made again from the checkpoint alone."""
    name, folder = run
    results = read_json(folder / "test.json")
    assert results["method"] == ("two_stage" if name == "rqvae" else f"two_stage[{name}]")
    restored = restore.restore(folder / "best_model.pth")
    content = read_embeddings(read_dataset(restored.cfg[DataOptions]))
    tokenizer = restore.carried_tokenizer(folder, restored, content.shape[1])
    assert torch.equal(tokenizer.encode(content), restored.model.code_NT.long())


def test_a_second_pre_training_uses_the_first(run, place, capsys):
    name, _ = run
    root, _ = place
    before = contents(root)
    capsys.readouterr()
    scripts.pretrain.run([f"--config={root / 'c.yaml'}", f"--tokenizer={name}"])
    assert "used again" in capsys.readouterr().out and contents(root) == before


def test_only_some_tokenizers_can_be_trained_jointly():
    for name in set(parts.TOKENIZERS) - set(parts.JOINT["diger"].tokenizers):
        with pytest.raises(Problem, match=f"tokenizer: {name} cannot be trained jointly with a recommender"):
            configure.load(None, [f"--tokenizer={name}"])
        assert configure.load(None, [f"--tokenizer={name}", "--method=two_stage"])


def test_a_file_of_another_tokenizer_is_refused(run, place):
    name, _ = run
    _, options = place
    other = "rq_kmeans" if name != "rq_kmeans" else "random_codes"
    cfg = configure.build(options | {"tokenizer": name})
    path = build.train_tokenizer(cfg, read_dataset(cfg[DataOptions]))
    wrong = configure.build(options | {"tokenizer": other, "rqvae_path": str(path)})
    with pytest.raises(Problem, match=f"holds a tokenizer of the kind '{name}', this run has '{other}'"):
        build.build_model(wrong, read_dataset(cfg[DataOptions]))


@pytest.mark.parametrize("weights", ["uniform", "counts"])
def test_residual_k_means_on_six_points_by_hand(weights):
    """Golden example: two levels of two centres; the squared error is 8/3 after the first and 1 after the second."""
    x = np.array([(0, 0), (0, 1), (1, 0), (10, 10), (10, 11), (11, 10)], np.float32)
    cfg = configure.build({"tokenizer": "rq_kmeans", "method": "two_stage", "num_emb_list": [2, 2], "weights": weights})
    model = RQKMeans(cfg[RQKMeans.Options], 2)
    count = np.array([3, 1, 1, 1, 1, 1]) if weights == "counts" else np.ones(6, np.int64)
    source = Source(x, count, None)
    model.fit(source, 0)
    centres = sorted(model.centres()[0].tolist())
    want = [[0.2, 0.2], [31 / 3, 31 / 3]] if weights == "counts" else [[1 / 3, 1 / 3], [31 / 3, 31 / 3]]
    assert np.allclose(centres, want, atol=1e-5)
    code = model.encode(x)
    assert len(code[:3, 0].unique()) == 1 and code[0, 0] != code[3, 0]
    if weights == "uniform":
        error = [float((model.decode(code)[:, t] - torch.from_numpy(x)).square().sum()) for t in (0, 1)]
        assert error[0] == pytest.approx(8 / 3, rel=1e-5) and error[1] <= 1 + 1e-4


def test_random_codes_know_the_row_alone(place):
    _, options = place
    cfg = configure.build(options | {"tokenizer": "random_codes", "num_emb_list": [16, 16, 16]})
    data = read_dataset(cfg[DataOptions])
    model = build.empty_tokenizer(cfg, 12)
    model.fit(Source.of(data), 3)
    x = read_embeddings(data)
    assert torch.equal(model.encode(x), model.encode(np.array(x)[::-1])) and model.encode(x).max() < 16
    assert measure(model, x, 0).reconstruction_error == pytest.approx(1, abs=1e-3)


# ---------------------------------------------------------------- options


def test_an_option_of_another_part_is_refused_on_the_command_line_and_left_aside_in_a_file(place):
    with pytest.raises(Problem, match=r"--encoder_layers belongs to recommender t5, which this run does not have"):
        configure.load(None, ["--method=sasrec", "--encoder_layers=3"])
    with pytest.raises(Problem, match=r"--weights belongs to tokenizer rq_kmeans"):
        configure.load(None, ["--method=two_stage", "--weights=counts"])
    with pytest.raises(Problem, match=r"--uncertainty belongs to uncertainty"):
        configure.load(None, ["--method=two_stage", "--uncertainty=none"])
    cfg = configure.build({"method": "sasrec", "encoder_layers": 3, "weights": "counts"})
    assert "encoder_layers" not in settings.flat(cfg) and cfg.aside["encoder_layers"] == 3
    assert configure.change(cfg, method="two_stage")  # what was left aside is there again
    assert settings.flat(configure.change(cfg, method="two_stage"))["encoder_layers"] == 3


def test_a_wrong_value_is_refused_wherever_it_is_for():
    with pytest.raises(Problem, match="encoder_layers: must be at least 1"):
        configure.build({"method": "sasrec", "encoder_layers": 0})


@pytest.mark.parametrize(
    ("preset", "given", "want"),
    [
        ({}, {}, ("diger", "rqvae", "t5")),
        ({}, {"method": "two_stage"}, ("two_stage", "rqvae", "t5")),
        ({"method": "diger"}, {"method": "two_stage"}, ("two_stage", "rqvae", "t5")),
        ({"recommender": "rq_transformer"}, {"method": "sasrec"}, ("sasrec", None, None)),
        ({}, {"recommender": "sasrec"}, ("sasrec", None, None)),
        ({"method": "sasrec"}, {"method": "two_stage"}, ("two_stage", "rqvae", "t5")),
        ({"recommender": "rq_transformer"}, {}, ("diger", "rqvae", "rq_transformer")),
    ],
)
def test_a_composition_is_what_its_names_say(preset, given, want):
    m = configure.build(preset, given)[parts.MethodOptions]
    assert (m.method, m.tokenizer, m.recommender) == want


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokenizer": "rqvea"}, r"tokenizer: 'rqvea' is not one of .*; did you mean 'rqvae'\?"),
        ({"recommender": "t4"}, r"recommender: 't4' is not one of t5"),
        ({"method": "sasrec", "tokenizer": "rqvae"}, "--tokenizer: sasrec recommends by items"),
    ],
)
def test_names_that_contradict_or_do_not_exist(given, message):
    with pytest.raises(Problem, match=message):
        configure.build({}, given)


def test_help_shows_the_chosen_parts_first():
    text = cli.help_text({}, {"method": "sasrec"})
    assert text.index("--hidden_units") < text.index("(not in this run)") < text.index("--encoder_layers")


def test_only_what_differs_from_the_default_counts(place, monkeypatch):
    """An option that is added later moves no tokenizer and is no difference to an old run."""
    _, options = place
    cfg = configure.build(options)
    data = read_dataset(cfg[DataOptions])
    before = build.tokenizer_path(cfg, data), settings.counting(cfg)
    spelled = configure.build(options | {"beta": 0.25, "kmeans_iters": 100, "lr_rec": 1e-3})
    assert (build.tokenizer_path(spelled, data), settings.counting(spelled)) == before
    assert settings.differences({k: v for k, v in settings.flat(cfg).items() if k != "beta"}, cfg) == []
    assert settings.differences({**settings.flat(cfg), "beta": 0.5}, cfg) == ["beta: 0.5 -> 0.25"]


# ---------------------------------------------------------------- the Python door


@pytest.fixture(scope="module", params=["t5", "causal_lm", "seq2seq_lm"])
def served(request, place):
    """The checkpoint of a two-stage run with each of some networks."""
    root, options = place
    scripts.pretrain.run([f"--config={root / 'c.yaml'}"])  # used again where another test has made it
    chosen = {"recommender": request.param, **LM.get(request.param, {})}
    return main.train(configure.build(options | chosen | {"run_name": f"door_{request.param}"})).best


def test_the_door_recommends_what_the_model_does(served):
    loaded = load(served)
    hits = loaded.recommend([["i3", "i17"], ["i5"] * 300], k=5)
    assert [len(h) for h in hits] == [5, 5] and hits[0][0].title == f"Item {hits[0][0].item[1:]}"
    history = torch.tensor([[loaded.number["i3"], loaded.number["i17"]]])
    want = loaded.model.recommend(history, 5)
    assert [h.item for h in hits[0]] == [loaded.items[i - 1] for i in want.item_BW[0]]
    assert [h.score for h in hits[0]] == pytest.approx(want.score_BW[0].tolist(), abs=1e-5)


def test_allowed_and_denied_items(served):
    loaded = load(served)
    few = loaded.recommend([["i3"]], k=10, allow=["i1", "i2", "i9"], deny=["i9"])[0]
    assert {h.item for h in few} == {"i1", "i2"}
    assert loaded.recommend([["i3"]], k=10, allow=[])[0] == [] and loaded.recommend([], k=3) == []


def test_what_is_denied_takes_no_place_of_a_list(served, monkeypatch):
    """The best items denied, as many as there are beams: what comes is what came behind them, with the same scores."""
    loaded = load(served)
    whole = loaded.recommend([["i3"]], k=30)[0]
    best = [h.item for h in whole[:20]]
    found = loaded.recommend([["i3"]], k=10, deny=best)[0]
    assert [h.item for h in found] == [h.item for h in whole[20:]]
    assert [h.score for h in found] == pytest.approx([h.score for h in whole[20:]], abs=1e-5)
    monkeypatch.setattr("serve.loaded.EXCLUDED", 19)  # more than that are left out of the tree
    left = [i for i in loaded.items if i not in best]
    found = loaded.recommend([["i3"]], k=10, deny=best)[0]
    assert len(found) == 10 and found == loaded.recommend([["i3"]], k=10, allow=left)[0]
    assert loaded.recommend([["i3"], ["i5"]], k=3, deny=loaded.items) == [[], []]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"histories": [["i3"], ["i333"]]}, r"history 1: item 'i333' is not in the catalogue; did you mean 'i\d+'"),
        ({"histories": [[]]}, "history 0: needs at least one item"),
        ({"histories": [["i1"]], "allow": ["x" * 10**6]}, r"allow: item 'x{200}\.\.\.' is not"),
        ({"histories": [["i1"]], "deny": ["?"]}, "deny: item"),
        ({"histories": [["i1"]], "k": 0}, "k: expected a whole number from 1"),
    ],
)
def test_bad_calls_of_the_door(served, call, message):
    with pytest.raises(Problem, match=message) as problem:
        load(served).recommend(**call)
    assert len(str(problem.value)) < 500


def test_callers_with_unlike_lists_do_not_disturb_each_other(served):
    """Threads over one model, each with an allow-list of its own."""
    loaded, wrong = load(served), []
    lists = [[f"i{i}" for i in range(start, 40, 4)] for start in range(4)]
    want = [loaded.recommend([["i3"]], k=5, allow=allow)[0] for allow in lists]

    def ask(which):
        for _ in range(20):
            if loaded.recommend([["i3"]], k=5, allow=lists[which])[0] != want[which]:
                wrong.append(which)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_second_network_from_the_command_line(place, capsys):
    """Joint, with everything that the preset of real data uses; resumes and evaluates to the same figures."""
    root, options = place
    given = options | {
        "method": "diger", "recommender": "rq_transformer", "legal_softmax": True, "label_prior": "usage",
        "assignment_forward": "history", "collision": "item", "run_name": "rq", "epochs": 2,
    }  # fmt: skip
    scripts.pretrain.run([f"--config={root / 'c.yaml'}"])  # used again where another test has made it
    main.main(words(given))
    folder = root / "out" / "tiny" / "rq"
    results = read_json(folder / "test.json")
    assert results["method"] == "frqud[rq_transformer]"
    main.main(["evaluate", "--checkpoint", str(folder / "best_model.pth")])
    assert f"test/ndcg@10 {results['ndcg@10']:.6g}\n" in capsys.readouterr().out
    assert "decay.usage_0" in read_checkpoint(folder / "best_model.pth")["model"]
    with pytest.raises(Problem, match="legal_softmax: scores only SIDs that exist"):
        configure.load(None, ["--legal_softmax=true"])
    with pytest.raises(Problem, match=r"collision: item has as many dedup tokens .* needs legal_softmax: true"):
        configure.load(None, ["--collision=item"])
    with pytest.raises(Problem, match="it cannot be combined with constrained: false"):
        configure.load(None, ["--method=two_stage", "--legal_softmax=true", "--constrained=false"])
    made_up = {"method": "two_stage", "item_loss": 1.0, "constrained": False}
    with pytest.raises(Problem, match="constrained: false lists SIDs that are no items"):
        configure.build(made_up)
    configure.build(made_up | {"item_rank": 0.0})
    for wrong in ({"gradient": "detached"}, {"assignment_forward": "soft"}):
        with pytest.raises(Problem, match="label_prior: needs hard codes"):
            configure.build({"label_prior": "usage"} | wrong)
    with pytest.raises(Problem, match="code_loss_weight: 0 removes the recommendation loss"):
        configure.build({"code_loss_weight": 0})
    configure.build({"code_loss_weight": 0, "gradient": "detached"})
    with pytest.raises(Problem, match="id_last_epoch: 2 comes before id_first_epoch 3"):
        configure.build({"id_first_epoch": 3, "id_last_epoch": 2})
    with pytest.raises(Problem, match=r"legal_softmax: .* was trained with True, which cannot be changed now"):
        load(folder / "best_model.pth", ["--legal_softmax=false", "--collision=suffix"])


def test_another_tokenizer_is_another_run(place):
    """What rqvae_path names decides the results, and makes no tokenizer."""
    _, options = place
    ours, other = (configure.build(options | {"rqvae_path": path}) for path in ("a.pth", "b.pth"))
    assert settings.counting(ours) != settings.counting(other)
    data = read_dataset(ours[DataOptions])
    assert build.tokenizer_path(ours, data) == build.tokenizer_path(other, data)


@pytest.mark.parametrize(
    ("words", "needs"),
    [
        ({"item_rank": 3.0}, "item_loss"),
        ({"uncertainty": "frqud", "initial_std": 1.0}, "uncertainty: sdud frqud_sdud"),
        ({"uncertainty": "none", "hot_threshold_ratio": 2.0}, "uncertainty: frqud frqud_sdud"),
        ({"tau_anneal_rate": 1e-4}, "uncertainty: tau_annealing"),
        ({"method": "two_stage", "max_group": 3}, "target_length or length: learned or sid_lengths: unlike"),
        ({"gradient": "detached", "label_prior": "none", "target_gradient": 0.5}, "gradient: end_to_end"),
        ({"offset_prior": 0.1}, "lr_offset"),
        ({"method": "diffsasrec", "decode_rounds": 2}, "decoding: multi"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused_on_the_command_line(words, needs):
    (*_, key) = words
    with pytest.raises(Problem, match=rf"--{key}: is read with {re.escape(needs)} only; (add --.*, or )?drop it$"):
        configure.build({}, words)
    assert settings.flat(configure.build(words))[key] == words[key]  # a file may keep it for another run


def test_what_an_option_needs_is_an_option_beside_it():
    for kind in parts.all_sections().values():
        for key, field in settings.fields_of(kind).items():
            for need in field.metadata["needs"]:
                name, values, example = re.findall(r"^([\w ]+)(?:: (.*)|=(.*))?$", need)[0]
                assert name in {**parts.owners(), **parts.all_sections()}, key
                for value in values.split() or [example] * bool(example):
                    settings.check_value(next(iter(parts.owners()[name].values())), name, yaml.safe_load(value))
    used = {
        "item_rank": 3.0,
        "item_loss": 0.5,
        "uncertainty": "tau_annealing",
        "tau_anneal_rate": 1e-4,
        "item_embedding": True,
    }
    configure.build({}, used | {"offset_prior": 0.0})
