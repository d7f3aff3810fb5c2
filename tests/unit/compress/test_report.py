"""The page and the card of a compressed model: their numbers are those of the plan, and what is missing is said."""

import json
import re
from html.parser import HTMLParser

import pytest

from ringmoe.batch import Batch
from ringmoe.checkpoint.store import CheckpointReader, CheckpointWriter
from ringmoe.cli import prune
from ringmoe.cli.console import guarded
from ringmoe.cli.report import ReportConfig, run
from ringmoe.compress import judge
from ringmoe.compress.plan import CompressionPlan
from ringmoe.compress.usage import measure
from ringmoe.errors import ConfigError


class Page(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def having(self, *names):
        return [attributes for _, attributes in self.tags if set(names) <= attributes.keys()]

    def missing(self):
        return {tag["data-missing"] for tag in self.having("data-missing")}


@pytest.fixture(scope="module")
def usage(model, images):
    return measure(model, [Batch({key: images(key) for key in model.config.modalities})], source="made up tiles")


@pytest.fixture(scope="module")
def source(trained, usage, tmp_path_factory):
    """The checkpoint with load statistics, as training leaves it."""
    path = tmp_path_factory.mktemp("source") / "model"
    with CheckpointWriter(path) as writer:
        for name in trained.names:
            writer.add(name, trained.tensor(name))
        writer.commit(config=trained.config, step=12, documents={"usage.json": usage.to_dict()})
    return CheckpointReader(path)


@pytest.fixture(scope="module")
def small(source, shards, tmp_path_factory):
    """A result of the command, with its report."""
    out = tmp_path_factory.mktemp("small") / "opt-kc"
    words = (source.path, out, "--mode", "kc", "--modality", "opt", "--report", "--shards", shards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["ringmoe-prune", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            prune.main()
    assert exit_.value.code == 0
    return out


def page_of(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def plan_of(folder):
    return CompressionPlan.from_dict(json.loads((folder / "compression.json").read_text())["plan"])


def test_the_ledger_is_the_plans(small):
    page, plan = page_of(small), plan_of(small)
    for number, column in enumerate(plan.ledger):
        cells = {
            cell["data-part"]: int(cell["data-count"])
            for cell in page.having("data-part", "data-count")
            if cell["data-column"] == str(number)
        }
        assert cells == column.parts
    assert [int(cell["data-total"]) for cell in page.having("data-total")] == [c.total for c in plan.ledger]
    flops = [int(cell["data-flops"]) for cell in page.having("data-flops")]
    sub_model = judge.encoder(plan.source.for_modalities(("opt",)))
    assert flops[1:] == [sub_model.flops_per_image("opt"), judge.encoder(plan.result).flops_per_image("opt")]


def test_spectra_and_energies_are_those_of_the_truncation(small):
    page, merges = page_of(small), json.loads((small / "compression.json").read_text())["merges"]
    assert [int(found["data-spectra"]) for found in page.having("data-spectra")] == [
        16,
        16,
        16,
    ]  # 8 experts, 2 matrices
    energies = [float(cell["data-energy"]) for cell in page.having("data-energy")]
    assert energies == pytest.approx([merge["energy"] for merge in merges.values()], rel=1e-5)
    for merge in merges.values():
        assert min(each["energy"] for each in merge["spectra"].values()) == merge["energy"]
        assert len(merge["spectra"]) == 8


def test_routing_is_what_training_counted(small, usage):
    text = (small / "report.html").read_text(encoding="utf-8")
    assert "made up tiles" in text
    counts = [int(cell["data-count"]) for cell in Page(text).having("data-count") if "data-part" not in cell]
    expected = [count for m in range(2) for layer in usage.counts for count in layer[m]]
    assert counts == expected


def test_speed_and_errors_are_measured_on_tiles(small):
    page = page_of(small)
    before, after = (float(page.having(f"data-rate-{name}")[0][f"data-rate-{name}"]) for name in ("before", "after"))
    assert before > 0
    assert after > 0
    errors = [float(page.having(f"data-error-{name}")[0][f"data-error-{name}"]) for name in ("before", "after")]
    assert all(error > 0 for error in errors)
    assert errors[0] != errors[1]
    layers = [float(row["data-error"]) for row in page.having("data-error")]
    assert len(layers) == 3
    assert all(error > 0 for error in layers)
    assert page.missing() == {"tasks"}


def test_all_variants_have_their_sizes(small):
    page, plan = page_of(small), plan_of(small)
    rows = {row["data-variant"]: row["data-params"] for row in page.having("data-variant")}
    variants = plan.source.variants()
    assert rows["whole model"] == str(judge.encoder(plan.source).num_params())
    kept = [row for name, row in rows.items() if name.startswith("EP, top")]
    bare = [judge.encoder(variants[f"opt, EP {share} %"]).num_params() for share in (75, 50, 25)]
    assert kept == [str(num) for num in bare]
    dense = {row for name, row in rows.items() if name[:2] in ("KS", "KA", "KC")}
    assert dense == {str(plan.result.num_params())}
    assert sum(row.get("class") == "this" for row in page.having("data-variant")) == 1


def test_the_page_needs_nothing_else(small):
    text = (small / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r"(https?:)?//[a-z]", text)
    CheckpointReader(small).verify()  # what people may change is no part of the checkpoint


def test_other_results_stand_beside(source, shards, small, tmp_path):
    for name, options in {"ka": {"mode": "ka"}, "refit": {"mode": "kc", "refit": True, "shards": (shards,)}}.items():
        prune.run(prune.PruneConfig(source.path, tmp_path / name, modality=("opt",), **options))
    beside = (tmp_path / "ka", tmp_path / "refit")
    run(ReportConfig(source=source.path, result=small, shards=(shards,), beside=beside, page=tmp_path / "page.html"))
    rows = (tmp_path / "page.html").read_text().split("<tr ")
    judged = {}
    for row in rows:
        if (name := re.search('data-variant="([^"]*)"', row)) and (error := re.search('data-judged="([^"]*)"', row)):
            judged[name.group(1)] = float(error.group(1))
    assert list(judged) == [
        "sub-model, all experts",
        "KA, knowledge averaging",
        "KC, knowledge compressing",
        "KC, W_2 and b_2 refitted, ridge 0.001",
    ]
    assert len(set(judged.values())) == 4
    prune.run(prune.PruneConfig(source.path, tmp_path / "sar", mode="ks", modality=("sar_l2",)))
    for other, complaint in ((tmp_path / "sar", "understand the same"), (small, "made in the same way")):
        with pytest.raises(ConfigError, match=complaint):
            run(ReportConfig(source=source.path, result=small, shards=(shards,), beside=(other,)))
    with pytest.raises(ConfigError, match="give --shards FOLDER"):
        run(ReportConfig(source=source.path, result=small, beside=beside))


def test_pruned_experts_are_struck_out_and_nothing_is_said_of_spectra(source, shards, tmp_path):
    words = prune.PruneConfig(
        source.path, tmp_path / "ep", mode="ep", modality=("opt",), keep=0.5, report=True, shards=(shards,)
    )
    prune.run(words)
    text, plan = (tmp_path / "ep" / "report.html").read_text(), plan_of(tmp_path / "ep")
    assert text.count(", pruned</title>") == sum(len(block.dropped) for block in plan.blocks)
    assert "nothing was merged" in text
    assert len(Page(text).having("data-error")) == 3
    assert 'data-variant="EP, top 50%"' in text


def test_a_sub_model_is_what_it_was(source, shards, tmp_path):
    words = prune.PruneConfig(
        source.path, tmp_path / "opt", mode="extract", report=True, shards=(shards,), modality=("opt",)
    )
    prune.run(words)
    page = page_of(tmp_path / "opt")
    assert page.missing() == {"speed before", "layer errors", "spectra", "tasks"}
    assert page.having("data-error-after")


def test_what_was_not_measured_is_said(reader, tmp_path):
    assert (
        guarded(lambda: prune.run(prune.PruneConfig(reader.path, tmp_path / "ks", mode="ks", modality=("opt",)))) == 0
    )
    run(ReportConfig(source=reader.path, result=tmp_path / "ks"))
    page = page_of(tmp_path / "ks")
    assert page.missing() == {"routing", "spectra", "layer errors", "reconstruction", "tasks"}
    assert page.having("data-rate-after")  # on noise
    assert not page.having("data-error-after")


def test_a_model_that_does_not_fit_is_not_loaded(source, small, tmp_path, monkeypatch):
    plan = plan_of(small)
    needed = 4 * judge.encoder(plan.result).num_params()
    monkeypatch.setattr(judge, "available_bytes", lambda: judge._SPARE_BYTES + 2 * needed)
    run(ReportConfig(source=source.path, result=small, page=tmp_path / "page.html"))
    page = Page((tmp_path / "page.html").read_text())
    assert "speed before" in page.missing()
    assert not page.having("data-rate-before")
    assert page.having("data-rate-after")
    assert "of memory are needed in float32" in (tmp_path / "page.html").read_text()


def test_only_the_checkpoint_that_it_was_made_of_is_compared(reader, source, small, tmp_path, capsys):
    assert guarded(lambda: run(ReportConfig(source=reader.path, result=small))) == 2
    assert "was made of model, not of" in capsys.readouterr().err.replace("\n", " ")
    assert guarded(lambda: run(ReportConfig(source=source.path, result=source.path))) == 2
    assert "was not made by ringmoe-prune" in capsys.readouterr().err.replace("\n", " ")
    target = tmp_path / "no" / "folder" / "page.html"
    assert guarded(lambda: run(ReportConfig(source=source.path, result=small, page=target))) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_card_tells_facts(source, small):
    card, plan = (small / "README.md").read_text(encoding="utf-8"), plan_of(small)
    assert card.startswith("---\nlibrary_name: ringmoe\n")
    for column in plan.ledger:
        assert f"{column.total:,}" in card
    made_of = json.loads((small / "compression.json").read_text())["source"]
    assert made_of["manifest_sha256"] in card
    assert made_of["step"] == 12
    code = re.search(r"```python\n(.*?)```", card, re.S).group(1).replace("FOLDER", str(small)).split("maps =")[0]
    names = {}
    exec(code, names)
    assert names["model"].config == plan.result
