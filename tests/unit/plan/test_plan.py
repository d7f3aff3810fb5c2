"""The command, the search and its messages."""

import json
import re
from pathlib import Path

import pytest

from ringmoe.cli.main import VERBS
from ringmoe.cli.plan import PlanConfig, run
from ringmoe.errors import ConfigError
from ringmoe.plan.cluster import CLUSTERS, Cluster, find_cluster
from ringmoe.plan.setting import EngineFile

ROOT = Path(__file__).resolve().parents[3]


def _plans(capsys, **options) -> list[dict]:
    run(PlanConfig(json=True, **options))
    return json.loads(capsys.readouterr().out)["plans"]


def test_a_run_is_planned_as_it_is_configured(capsys, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("parallel: {expert_parallel: 2, recompute: blocks}\ndata: {micro_batch: 8}\n")
    (found,) = _plans(capsys, preset="small", config=file, devices=(4,), accumulation=3)
    setting = found["setting"]
    assert (setting["expert_parallel"], setting["recompute"], setting["accumulation"]) == (2, "blocks", 3)
    assert setting["images"] == {"opt": 2, "ms": 2, "sar_l1": 2, "sar_l2": 2}
    assert setting["total"] == 8 * 3 * 4
    assert found["memory"]["activations"] == found["memory"]["activations_blocks"]
    assert found["fits"]
    assert {row["operation"] for row in found["exchange"]} == {"all-to-all", "all-reduce", "all-gather"}


def test_images_of_a_step_decide_the_accumulation(capsys):
    (found,) = _plans(capsys, preset="small", devices=(4,), micro_batch=8, total=128)
    assert found["setting"]["accumulation"] == 4
    with pytest.raises(ConfigError, match="no multiple of micro-batch 8 x 4"):
        run(PlanConfig(preset="small", devices=(4,), micro_batch=8, total=100))


def test_from_one_device_to_a_thousand(capsys):
    found = _plans(capsys, preset="swin-88m", devices=(1, 2, 8, 1024), total=8192, search=True)
    assert [plan["setting"]["devices"] for plan in found] == [1, 2, 8, 1024]
    assert {plan["setting"]["total"] for plan in found} == {8192}
    times = [plan["time"]["total"] for plan in found]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"search": True, "engine": "lean", "recompute": "blocks"}, "leave out --engine, --recompute"),
        ({"engines": ("lean",)}, "they go with --search"),
        ({"show": 3}, "they go with --search"),
    ],
)
def test_options_that_would_mean_nothing_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        PlanConfig(**options)


def test_the_search_lists_the_fastest_first_and_only_what_fits(capsys):
    found = _plans(capsys, preset="ringmoe-14b", devices=(8,), cluster="h100", total=128, search=True, show=100)
    times = [plan["time"]["total"] for plan in found]
    assert times == sorted(times)
    assert len(found) > 3
    assert max(plan["memory"]["peak"] for plan in found) <= CLUSTERS["h100"].usable_bytes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "ringmoe-14b", "devices": (1,), "engines": ("zero1", "zero2")}, "GB are short. Most are optimiser"),
        ({"preset": "ringmoe-14b", "devices": (8,), "total": 12}, "cannot be shared out among 8 devices"),
        ({"preset": "tiny", "engines": ("zero9",)}, "no engine file 'zero9'"),
        ({"preset": "tiny", "cluster": "z80"}, "no cluster 'z80'.* h200, h100, a100"),
    ],
)
def test_what_cannot_be_planned_is_said_in_words(options, words):
    with pytest.raises(ConfigError, match=words):
        run(PlanConfig(search=True, **options))


def test_a_host_that_is_too_small_is_said(tmp_path):
    example = (ROOT / "docs" / "examples" / "cluster.yaml").read_text()
    file = tmp_path / "cluster.yaml"
    file.write_text(example.replace("host_memory_gb: 512", "host_memory_gb: 256"))
    with pytest.raises(ConfigError, match=r"a host must hold .* GB are short"):
        run(PlanConfig(preset="ringmoe-14b", devices=(1,), cluster=str(file), engines=("offload",), search=True))


def test_what_does_not_fit_is_shown_and_said(capsys):
    run(PlanConfig(preset="ringmoe-14b", devices=(8,), cluster="a100"))
    said = " ".join(capsys.readouterr().out.split())
    assert "PREDICTED" in said
    assert "does not fit 72.0 GB" in said
    assert "GB are short" in said


def test_the_page_shows_what_the_commands_print(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = (ROOT / "docs" / "planning.md").read_text()
    blocks = re.findall(r"```\n\$ ringmoe plan (.*)\n([^`]*)```", page)
    assert len(blocks) == 2
    for command, shown in blocks:
        VERBS["plan"].run("plan", command.split())
        printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.strip().splitlines())
        assert printed == shown.strip(), f"docs/planning.md is older than the code: paste what {command} prints"


def test_many_plans_are_one_table(capsys):
    run(PlanConfig(preset="tiny", devices=(1, 4), show=2, total=64, search=True))
    said = capsys.readouterr().out
    assert "PREDICTED" in said
    assert "settings that fit" in said


def test_a_cluster_is_a_yaml_file(tmp_path):
    example = find_cluster(str(ROOT / "docs" / "examples" / "cluster.yaml"))
    assert isinstance(example, Cluster)
    file = tmp_path / "cluster.yaml"
    file.write_text("name: x\nmemory_gb: 0\n")
    with pytest.raises(ConfigError):
        find_cluster(str(file))


def test_an_engine_file_that_is_not_counted_is_refused(tmp_path):
    file = tmp_path / "engine.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2, "overlap_comm": True}}))
    with pytest.raises(ConfigError, match="overlap_comm is True"):
        EngineFile.read(str(file))
    assert EngineFile.read("offload").offload
    assert EngineFile.read("zero1").stage == 1
