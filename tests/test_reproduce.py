"""All experiments into one folder: every claim finds what it needs, nothing is done twice, a failure stops no other."""

import csv
import json
import shutil
from copy import copy, deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import backsight as bs
import backsight.reproduction as module
from backsight import experiments
from backsight.chain import InverseChain
from backsight.core import UserError
from backsight.data.world import World
from backsight.experiments import EXPERIMENTS, Experiment, Result, Subject
from backsight.experiments.claims import CLAIMS, load_claims
from backsight.experiments.controls import controls_of
from backsight.experiments.run import read_settings
from backsight.experiments.subject import CONTROLS, open_subject
from backsight.figures import image_png
from backsight.figures.forest import forest_pages
from backsight.inverses import ridge
from backsight.models import load_model
from backsight.report import claims as report_claims
from backsight.report.experiments import write_experiments_report
from backsight.reproduction import BrokeOff, experiment, find_experiment, read_all_settings, reproduce
from example_pages import Page
from known_chains import FEW, FLOW, random_subject, untrained_chain, untrained_subject

LAWS = ("prior", "defining", "independent")
known_subject = cache(partial(random_subject, inverses=[FLOW]))


def small_subject(family: str, law: str, images: int = 4) -> Subject:
    """The same for every law, by another name, on the drawn world."""
    known = known_subject(family)
    model = copy(known.model)
    model.name = f"{family} {law}"
    world = World(law, model.pixels.size, 2, images, single=family == "vit")
    return Subject(model, known.ensemble, world, batch_size=4)


@pytest.fixture(scope="module")
def cast() -> dict[str, Subject]:
    """A detector and a classifier for every law."""
    found = [small_subject(family, law) for family in ("detr", "vit") for law in LAWS]
    return {subject.name: subject for subject in found}


@pytest.fixture
def opened(cast, monkeypatch) -> list[str]:
    """Models are those of the cast, by name, without controls; figures (tested elsewhere) are a dot. Gives the names
    that were opened."""
    names: list[str] = []

    def open_one(model, chain, data, **options):
        names.append(model)
        return cast[model]

    def draw(experiment, result, folder):
        for name in ("figure.png", "figure.pdf"):
            Path(folder, name).write_bytes(image_png(torch.zeros(3, 1, 1)))

    monkeypatch.setattr(module, "open_subject", open_one)
    monkeypatch.setattr(module, "controls_of", lambda subject: [])
    monkeypatch.setattr(report_claims, "forest_pages", lambda rows: [])
    monkeypatch.setattr(experiments.run, "draw", draw)
    return names


def make_run(folder: Path, task: str, weight: float | None, error: float, precision: float) -> Path:
    """A finished run, as far as ``trade_off`` reads it."""
    folder.mkdir()
    config = {"model": {"name": "small", "weights": "random"}, "task": task, "trade_off": weight}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    evaluation = {
        "seeds": [0, 1, 2],
        "num_images": 9,
        "entries": {"backbone": {"mse": [error, error * 1.01, error * 0.99]}},
        "task_metrics": {"AP": [precision] * 3},
        "card": {"data": "coco:x", "data_fingerprint": "ab"},
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "card.md").write_text("card")
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Two of them, of which nothing follows."""
    return [make_run(tmp_path / name, name, None, 0.05, 0.4) for name in ("modular", "classic")]


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/*")}


def test_every_claim_finds_what_it_needs(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MODELS", ("detr prior", "vit prior"))
    others = [module.Choice(f"{family} {law}") for family in ("detr", "vit") for law in LAWS[1:]]
    monkeypatch.setattr(module, "_other_shipped", lambda: others)
    numbers = {
        "modular": (None, 0.05, 0.4),
        "classic": (None, 0.03, 0.4),
        "low": (0.1, 0.03, 0.41),
        "high": (0.9, 0.01, 0.3),
    }
    runs = [
        make_run(tmp_path / name, name if weight is None else "joint", weight, error, precision)
        for name, (weight, error, precision) in numbers.items()
    ]
    page = reproduce(tmp_path / "all", settings=FEW, runs=runs)
    named = ["detr prior", "vit prior"]  # once on their own images, once on those of the first, for all models
    assert opened == ["detr prior", *named, "vit prior", *(choice.model for choice in others)]
    assert Result.load(tmp_path / "all" / "truth").values_of("law") == ["prior", "defining", "independent"]

    found = load_claims(tmp_path / "all" / "claims.json")
    assert {each.id for each in found} == {claim.id for claim in CLAIMS}
    left = {each.id: each.reason for each in found if each.verdict == "not tested"}
    assert "measured its saturation" in left.pop("classic-is-greyish")
    assert "no local inverse" in left.pop("detr-noise-blends")
    assert "no local inverse" in left.pop("detr-noise-blends-inverse")
    assert all(reason.startswith("no image has an answer") for reason in left.values()), left
    assert len(left) < 5, left
    verdicts = {each.id: each.verdict for each in found}
    assert {verdicts[name] for name in ("classic-below-modular", "error-falls-with-lambda")} == {"holds"}
    assert verdicts["vit-keeps-detail"] == "undecided"  # of four images nothing can be told
    check_paper(tmp_path / "all", found)

    steps = json.loads((tmp_path / "all" / "reproduce.json").read_text())["steps"]
    assert [step["experiment"] for step in steps if not step["reason"]] == list(EXPERIMENTS)
    check_page(page, [each.statement for each in found])


def check_paper(folder: Path, found: list) -> None:
    """The table, for a paper and for a program, and the methods."""
    rows = list(csv.DictReader((folder / "claims.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["claim"] for row in rows] == [each.statement for each in found]
    tested = [each for each in found if each.parts]
    assert [row["verdict"] for row in rows if row["effect"]] == [each.verdict for each in tested]
    latex = (folder / "claims.tex").read_text(encoding="utf-8")
    assert latex.count(r" \\") == 1 + len(tested)
    assert latex.startswith(r"\begin{longtable}")
    methods = (folder / "methods.txt").read_text(encoding="utf-8")
    for words in ("detr prior (random weights) was given up to 4 test images of world:prior", "Holm", "shares 0.3"):
        assert words in methods


def test_controls_are_measured_beside_each_model(opened, cast, tmp_path, monkeypatch):
    monkeypatch.setattr(ridge, "IMAGES", 50)
    monkeypatch.setattr(module, "controls_of", controls_of)
    monkeypatch.setattr(report_claims, "forest_pages", forest_pages)
    reproduce(tmp_path, models=["vit prior"], experiments=["stage_error", "trust"])
    result = Result.load(tmp_path / "trust")
    names = ["vit prior", *(f"vit prior, {control}" for control in CONTROLS)]
    assert [card["model"] for card in result.subjects] == names
    found = {each.id: each for each in load_claims(tmp_path / "claims.json")}
    claim = found["reconstruction-is-specific"]
    assert [each.kind for each in claim.controls] == list(CONTROLS)
    assert [card["model"] for card in claim.subjects] == names[:1]
    assert (tmp_path / "claims.png").is_file()
    assert (tmp_path / "claims.pdf").read_bytes().startswith(b"%PDF")
    assert all(control in (tmp_path / "report.html").read_text() for control in CONTROLS)
    monkeypatch.setattr(module, "controls_of", lambda subject: pytest.fail("a result that is kept needs no controls"))
    reproduce(tmp_path, models=["vit prior"], experiments=["stage_error", "trust"])


def test_models_are_set_side_by_side_on_the_same_images(opened, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_open", lambda choice, *_: asked.append(choice) or cast_of(choice))
    subjects = {name: small_subject(name.split()[0], "prior") for name in ("detr prior", "vit prior")}

    def cast_of(choice):
        return subjects[choice.model]

    reproduce(tmp_path, models=list(subjects), experiments=["stage_error"])
    assert [(each.model, each.data, each.stretch) for each in asked] == [
        *(("detr prior", None, False), ("detr prior", "world:prior", True), ("vit prior", "world:prior", True))
    ]
    asked.clear()
    reproduce(tmp_path, models=list(subjects), data=["world:defining"], experiments=["stage_error"])
    assert {each.data for each in asked} == {"world:defining"}
    assert [each.stretch for each in asked] == [True, True]


def test_runs_that_ship_with_a_model_are_compared_by_default(opened, tmp_path, monkeypatch, runs):
    monkeypatch.setattr(module, "shipped_runs", lambda: runs)
    reproduce(tmp_path / "out", experiments=["trade_off"])
    assert Result.load(tmp_path / "out" / "trade_off").values_of("task") == ["modular", "classic"]


SOME = ("stage_error", "abstraction", "trade_off", "detection_errors")


def test_what_is_done_is_kept_until_something_changes(opened, cast, tmp_path, monkeypatch):
    def again(**changes):
        reproduce(tmp_path, **{"models": ["detr prior", "vit prior"], "experiments": SOME, **changes})
        return times(tmp_path)

    first = again()
    assert {name.partition("/")[0] for name in first} == {"stage_error", "abstraction", "detection_errors"}
    assert again() == first
    steps = json.loads((tmp_path / "reproduce.json").read_text())["steps"]
    assert [step["kept"] for step in steps] == [True, True, False, True]

    second = again(settings={"abstraction": {"threshold": 0.4}})
    assert {name.partition("/")[0] for name in first if second[name] != first[name]} == {"abstraction"}
    (tmp_path / "stage_error" / "asked.json").unlink()  # interrupted before the end
    third = again(settings={"abstraction": {"threshold": 0.4}})
    assert {name.partition("/")[0] for name in first if third[name] != second[name]} == {"stage_error"}
    monkeypatch.setitem(cast, "vit prior", small_subject("vit", "prior", images=3))
    fourth = again(settings={"abstraction": {"threshold": 0.4}})
    changed = {name.partition("/")[0] for name in first if fourth[name] != third[name]}
    assert changed == {"stage_error", "abstraction"}  # errors of detections have nothing to do with a classifier

    fifth = again(experiments=["stage_error"])
    assert fifth == fourth
    assert '<section id="detection_errors">' in (tmp_path / "report.html").read_text()
    found = {each.id: each.reason for each in load_claims(tmp_path / "claims.json")}
    assert found["missed-vanish"] != found["vit-noise-stays"] == "token_noise was not done"


def test_other_chains_are_other_results(opened, cast, tmp_path, monkeypatch):
    names = {"models": ["vit prior"], "experiments": ["stage_error"]}
    reproduce(tmp_path, **names)
    before = times(tmp_path)
    known = cast["vit prior"]
    chains = deepcopy(known.ensemble)
    with torch.no_grad():
        next(chains.chains[0].parameters()).add_(0.1)
    monkeypatch.setitem(cast, "vit prior", Subject(known.model, chains, known.data, batch_size=4))
    reproduce(tmp_path, **names)
    assert before.keys() == times(tmp_path).keys()
    assert set(before.values()).isdisjoint(times(tmp_path).values())


def test_a_failure_stops_nothing_else(opened, tmp_path, monkeypatch, caplog):
    def measure(subject, *, limit: int = 1):
        if "vit" in subject.name or limit > 1:
            raise UserError("no such thing here")
        return Result("odd", [subject.card()], [])

    odd = Experiment("odd", "Is it odd?", measure, lambda result: None)
    monkeypatch.setitem(EXPERIMENTS, "odd", odd)
    caplog.set_level("INFO")
    names = {"models": ["detr prior", "vit prior"], "experiments": ["trade_off", "odd", "stage_error"]}
    page = reproduce(tmp_path / "one", **names)
    assert Result.load(tmp_path / "one" / "odd").notes == ["vit prior is left out: no such thing here"]
    assert [card["model"] for card in Result.load(tmp_path / "one" / "odd").subjects] == ["detr prior"]
    assert "give their folders as runs" in page.read_text()
    assert caplog.messages[0].startswith("[1/3] trade_off: not done: trade_off compares finished runs")
    assert "odd: vit prior is left out: no such thing here" in caplog.messages
    assert caplog.messages[-1].startswith("[3/3] stage_error: ")

    reproduce(tmp_path / "one", **names, settings={"odd": {"limit": 2}})
    found = {each.id: each for each in load_claims(tmp_path / "one" / "claims.json")}
    assert found["classic-below-modular"].reason == "trade_off compares finished runs: give their folders as runs"
    assert found["error-rises-vit"].verdict == "undecided"
    assert found["missed-vanish"].reason == "detection_errors was not done"
    steps = json.loads((tmp_path / "one" / "reproduce.json").read_text())["steps"]
    assert steps[1]["reason"] == "no such thing here"
    page = write_experiments_report(tmp_path / "one")  # what an earlier call left of `odd` is not shown
    assert '<section id="odd">' not in page.read_text()
    assert '<section id="stage_error">' in page.read_text()


@pytest.mark.parametrize("half", ["measure", "draw"])
def test_a_mistake_in_the_program_stops_nothing_else(opened, tmp_path, monkeypatch, half):
    def fail(*_, **__):
        raise RuntimeError("two\nlines")

    odd = Experiment("odd", "Is it odd?", lambda subject: Result("odd", [subject.card()], []), fail)
    known = experiments.run.draw
    if half == "draw":
        monkeypatch.setattr(
            experiments.run, "draw", lambda each, *rest: (fail if each.draw is fail else known)(each, *rest)
        )
    else:
        odd = replace(odd, measure=fail)
    monkeypatch.setitem(EXPERIMENTS, "odd", odd)
    names = {"models": ["vit prior"], "experiments": ["odd", "stage_error"]}
    with pytest.raises(BrokeOff, match=r"^odd broke off \(RuntimeError: two lines\): .*report.html$"):
        reproduce(tmp_path, **names)
    first, second = json.loads((tmp_path / "reproduce.json").read_text())["steps"]
    assert (first["reason"], first["broke"], second["reason"]) == ("RuntimeError: two lines", True, "")
    assert 'raise RuntimeError("two' in (tmp_path / "odd" / "error.txt").read_text()
    assert {each.id for each in load_claims(tmp_path / "claims.json")} == {claim.id for claim in CLAIMS}
    assert "RuntimeError: two lines" in (tmp_path / "report.html").read_text()

    repaired = replace(odd, measure=lambda subject: Result("odd", [subject.card()], []), draw=lambda *_: None)
    monkeypatch.setitem(EXPERIMENTS, "odd", repaired)
    reproduce(tmp_path, **names)
    assert not (tmp_path / "odd" / "error.txt").exists()


def test_an_experiment_for_no_model_says_why(opened, tmp_path):
    with pytest.raises(UserError, match=r"^no experiment could be done: detection_errors is for models that detect"):
        reproduce(tmp_path, models=["vit prior"], experiments=["detection_errors"])
    (step,) = json.loads((tmp_path / "reproduce.json").read_text())["steps"]
    assert step["reason"] == "detection_errors is for models that detect, vit prior does not"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experiments": ["stage-error"]}, "did you mean .stage_error"),
        ({"experiments": ["xyz"]}, "there is reconstruct, stage_error"),
        ({"models": ["a", "b"], "chains": ["c"]}, "2 models and 1 chains"),
        ({"models": ["a", "b", "c"], "data": ["x", "y"]}, "3 models and 2 data"),
        ({"settings": {"truth": {"scenes": 1}}}, "no 'scenes': did you mean 'num_scenes'"),
        ({"settings": {"truth": {"num_scenes": "many"}}}, "'num_scenes' of .* is 'many': it has to be a whole number"),
        ({"models": ["vit prior", "vit prior"], "data": ["world", "world:single"]}, "have one name"),
    ],
)
def test_mistakes_are_refused_in_one_line(opened, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        reproduce(tmp_path, **arguments)


def test_settings_are_read_as_their_defaults_are():
    measure = find_experiment("token_noise").measure
    assert read_settings(measure, ["shares=[0.1, 0.5]", "seed=3"]) == {"shares": [0.1, 0.5], "seed": 3}
    assert read_settings(measure, ["shares=0.1", "noise=zero"]) == {"shares": [0.1], "noise": "zero"}
    assert read_settings(find_experiment("abstraction").measure, ["threshold=1"]) == {"threshold": 1.0}
    assert read_settings(find_experiment("color_perturbation").measure, ["category="]) == {"category": ""}
    for text in ("seed", "seed=a", "seed=[1", "seed=true"):
        with pytest.raises(UserError):
            read_settings(measure, [text])
    assert read_all_settings(["truth.num_scenes=7", "truth.num_training=9"]) == {
        "truth": {"num_scenes": 7, "num_training": 9}
    }
    with pytest.raises(UserError, match="write EXPERIMENT"):
        read_all_settings(["num_scenes=7"])


# ---- opening what a user names


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder as far as it is opened: chains, the data's name, the mean image."""
    folder = tmp_path_factory.mktemp("run")
    model = load_model("zoo/vit-prior")
    for seed in (0, 1):
        untrained_chain(model, seed).save(folder / "chains" / str(seed))
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"spec": "world:prior:single"}}))
    save_file({"mean_image": torch.full((3, 96, 96), 0.25)}, folder / "mean_image.safetensors")
    return folder


def test_a_run_says_its_model_its_data_and_its_mean_image(run):
    for chain, seeds in ((run, [0, 1]), (run / "chains", [0, 1]), (run / "chains" / "1", [1])):
        subject = open_subject(chain=chain, num_images=3)
        assert (subject.name, subject.data.name, subject.num_images) == ("zoo/vit-prior", "world:prior:single", 3)
        assert subject.seeds == seeds
        assert subject.mean_image.unique().tolist() == [0.25]
    other = open_subject("zoo/vit-prior", run, "world:defining:single", num_images=2)
    assert other.data.name == "world:defining:single"


def test_a_subject_takes_one_chain_or_a_run_and_data_by_its_specification(run):
    model, opened = load_model("zoo/vit-prior"), open_subject(chain=run, num_images=3)
    for chain, seeds in ((run, [0, 1]), (InverseChain.from_pretrained(run / "chains" / "1"), [1])):
        subject = bs.Subject(model, chain, "world:prior:single", num_images=3)
        assert subject.card() == {**opened.card(), "seeds": seeds}
        assert torch.equal(subject.mean_image, opened.mean_image)
    assert bs.experiments.trust.measure(subject).subjects == [subject.card()]
    with pytest.raises(UserError, match="at least 1"):
        bs.Subject(model, run, "world:prior:single", num_images=0)


def test_linear_chains_are_solved_for_and_stand_beside_trained_ones(monkeypatch, run):
    monkeypatch.setattr(ridge, "IMAGES", 100)
    subject = open_subject("zoo/vit-prior", "linear", "world:prior:single", num_images=8)
    assert (subject.stages, subject.seeds) == (["backbone", "encoder"], [0])
    batch = subject.batches[0]
    error = (subject.reconstruct(batch, "backbone") - batch.images).square().mean()
    assert error < 0.1 * (subject.mean_image - batch.images).square().mean()
    for control in controls_of(open_subject(chain=run, num_images=8)):
        own = (control.reconstruct(batch, "backbone") - batch.images).square().mean()
        assert (own < 1.5 * error) == (control.control == "linear inverse")
    unknown = untrained_subject(subject.model, 1)  # on pictures that have no name by which they could be opened
    assert [each.control for each in controls_of(unknown)] == list(CONTROLS[:2])
    with pytest.raises(UserError, match="name the model, and by data the images"):
        open_subject("zoo/vit-prior", "linear")


def test_draws_are_taken_by_the_inverses_that_ship_for_it(run):
    choices = [module.Choice("zoo/detr-prior"), module.Choice("zoo/vit-defining"), module.Choice(chain=str(run))]
    experiment = EXPERIMENTS["ambiguity"]
    drawing, *others = module._choices_of(experiment, choices, [], lambda _: pytest.fail("nothing is opened"))
    assert (drawing.chain, drawing.most, others) == ("zoo/detr-prior/flows", module.DRAWN, choices[1:])
    assert open_subject(drawing.model, drawing.chain, num_images=2).sampling_stages == [
        "backbone",
        "encoder",
        "decoder",
        "prediction",
    ]


def test_what_cannot_be_opened_says_what_would(run, tmp_path):
    with pytest.raises(UserError, match="detr-resnet-50 comes without chains: name a run by chain RUN"):
        open_subject("detr-resnet-50")
    with pytest.raises(UserError, match="neither a model nor a chain"):
        open_subject()
    with pytest.raises(UserError, match="at least 1"):
        open_subject(chain=run, num_images=0)
    shutil.copytree(run / "chains" / "0", tmp_path / "alone")
    with pytest.raises(UserError, match="name the data by data"):
        open_subject(chain=tmp_path / "alone")


def test_one_experiment_and_its_page(run, tmp_path):
    result = bs.experiment("trust", tmp_path, chains=[run], images=4)
    (ids,) = result.images.values()
    assert result.to_frame().image.tolist()[: len(ids)] == list(ids)
    assert result.subjects[0]["num_images"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {
        *("result.json", "table.csv", "figure.png", "figure.pdf", "report.html")
    }
    page = check_page(tmp_path / "report.html", [EXPERIMENTS["trust"].question, "zoo/vit-prior"])
    assert page.count("<tr>") > len(result.measurements)


def test_a_single_value_has_no_interval_on_the_page(opened, tmp_path, runs):
    for path in (run / "evaluation.json" for run in runs):
        content = json.loads(path.read_text())
        content["entries"]["backbone"]["mse"], content["task_metrics"]["AP"] = [0.05], [0.4]
        path.write_text(json.dumps(content | {"seeds": [0]}))
    page = reproduce(tmp_path / "out", experiments=["trade_off"], runs=runs).read_text()
    found = {each.id: each for each in load_claims(tmp_path / "out" / "claims.json")}
    assert found["classic-below-modular"].reason == "a single seed has no interval"
    assert (found["classic-below-modular"].parts[0].low, found["classic-below-modular"].parts[0].high) == (None, None)
    assert page.count("(no interval)") > 4
    assert not any(text in page for text in ("[nan", "nan]", ">nan", '"nan', "None"))
    row = (tmp_path / "out" / "trade_off" / "table.csv").read_text().splitlines()[1]
    assert row.endswith(",0.05,,,1,1")


def test_an_experiment_on_nothing_says_what_to_name(opened, tmp_path, runs):
    with pytest.raises(UserError, match="trust needs models: name some"):
        experiment("trust", tmp_path)
    with pytest.raises(UserError, match="give their folders as runs"):
        experiment("trade_off", tmp_path)
    result = experiment("trade_off", tmp_path / "out", settings=[f"runs=[{runs[0]}, {runs[1]}]"])
    assert result.values_of("task") == ["modular", "classic"]


def test_the_figure_of_a_sweep_is_no_run(opened, tmp_path, runs):
    experiment("trade_off", tmp_path / "trade_off", settings=[f"runs=[{runs[0]}, {runs[1]}]"])
    reproduce(tmp_path / "out", experiments=["trade_off"], runs=sorted(tmp_path.glob("*/")))
    assert Result.load(tmp_path / "out" / "trade_off").values_of("task") == ["classic", "modular"]


# ---- the page


def check_page(path: Path, said: list[str]) -> str:
    """The page is whole in itself and says all of ``said``; gives its source."""
    page = Page(path)
    links = [each[name] for _, each in page.tags for name in ("src", "href") if name in each]
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    anchors = {each.get("id") for _, each in page.tags}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    assert not {"link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert [text for text in said if text not in " ".join(page.text.split())] == []
    return page.source
