"""What the command line makes of presets, files and options, and what it refuses, with the remedy."""

import json
from pathlib import Path

import pytest
import yaml

from ringmoe import modality
from ringmoe.config import from_dict, load_yaml, to_yaml
from ringmoe.errors import ConfigError
from ringmoe.models import PRESETS
from ringmoe.train.command import parse
from ringmoe.train.presets import preset
from ringmoe.train.run import RunConfig

SMALL = ["--model.image-size", "32", "--model.mask-unit", "8", "--model.window", "4"]
TWO_RANKS = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def arguments(shards):
    return [*SMALL, "--data.shards", str(shards)]


def test_options_lie_over_the_file_and_the_file_over_the_preset(arguments, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\noptimiser: {lr: 5e-4, clip: 0.5}\n")
    config = parse(["--config", str(file), *arguments, "--optimiser.lr", "1e-4"], {})
    assert (config.seed, config.optimiser.lr, config.optimiser.clip) == (3, 1e-4, 0.5)
    assert config.model.dims == preset("tiny").model.dims
    assert config.optimiser.weight_decay == preset("tiny").optimiser.weight_decay


def test_printed_settings_can_be_read_again(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        parse([*arguments, "--seed", "7", "--data.weights", "opt", "2", "--print-config"], {})
    assert end.value.code == 0
    file = tmp_path / "run.yaml"
    file.write_text(capsys.readouterr().out)
    config = from_dict(RunConfig, load_yaml(file))
    assert config.seed == 7
    assert config.data.weights == {"opt": 2.0}
    assert to_yaml(config) == file.read_text()


def test_a_dry_run_says_what_would_be_done_and_starts_nothing(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    output = tmp_path / "run"
    options = ["--output", str(output), "--parallel.expert-parallel", "2", "--schedule.steps", "12"]
    with pytest.raises(SystemExit) as end:
        parse([*arguments, *options, "--schedule.warmup", "2", "--dry-run"], {})
    assert end.value.code == 0
    plan = " ".join(capsys.readouterr().out.split())
    assert "2, experts over 2, engine zero1, fp32" in plan  # as many ranks as the experts need
    assert "64: opt 16, ms 16, sar_l1 16, sar_l2 16" in plan
    assert "sar_l2 shards 15 16 192 12.8 12 or 13 times" in plan
    assert "12, 12 epochs of 1" in plan
    assert not output.exists()


def test_the_rank_that_deepspeed_adds_is_taken(arguments):
    assert parse(["--local_rank=0", *arguments], TWO_RANKS) == parse(arguments, TWO_RANKS)


@pytest.mark.parametrize("name", PRESETS)
def test_every_model_preset_is_a_run(name):
    config = preset(name)
    assert from_dict(RunConfig, yaml.safe_load(to_yaml(config))) == config


REFUSED = {
    "unknown preset": (["--preset", "huge"], {}, r"no preset 'huge'; there are tiny, small"),
    "experts over a world that they do not divide": (
        ["--parallel.expert-parallel", "2"],
        {},
        r"expert-parallel size 2 does not fit 1 ranks.*use one of 1, or start another number of ranks",
    ),
    "experts that the ranks do not divide": (
        ["--parallel.expert-parallel", "2", "--model.num-specialised", "3"],
        TWO_RANKS,
        r"does not divide the 3 experts of the specialised family: use one of 1",
    ),
    "experts of a dense model": (
        ["--parallel.expert-parallel", "2", "--model.num-specialised", "0", "--model.num-collaborative", "0"],
        TWO_RANKS,
        r"no routed experts: use --parallel.expert-parallel 1",
    ),
    "a batch that cannot come out": (
        ["--batch.total", "100"],
        TWO_RANKS,
        r"a step has 64 images .* asks for 100: 100 is no multiple of 64: change --data.micro-batch",
    ),
    "a batch that needs accumulation": (["--batch.total", "128"], TWO_RANKS, r"set --batch.accumulation 2"),
    "fewer images than modalities": (["--data.micro-batch", "3"], {}, r"cannot hold one of each of 4 .* at least 4"),
    "no decoders": (["--model.no-decoders"], {}, r"no decoders.*--model.decoders"),
    "tiles smaller than the images": (
        ["--model.image-size", "96", "--model.mask-unit", "32"],
        {},
        r"tiles of opt have 32 pixels, the model takes images of 96: build .* or train with --model.image-size 32",
    ),
    "an engine file that is not there": (["--parallel.engine", "zero9"], {}, r"no engine file 'zero9'.*zero1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_the_remedy(case, arguments):
    options, environ, message = REFUSED[case]
    with pytest.raises(ConfigError, match=r"(?s)" + message):
        parse([*arguments, *options], environ)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--every.log", "0"], "every.log is 0 steps; expected at least 1"),
        (["--schedule.steps", "5"], "the warm-up must be shorter than the run"),
        (["--schedule.step", "5"], "--schedule.steps"),
        (["--seed", "one"], "--seed"),
    ],
)
def test_a_value_that_cannot_be_ends_with_a_word_about_it(options, message, arguments, capsys):
    with pytest.raises(SystemExit) as end:
        parse([*arguments, *options], {})
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_shards_without_a_modality_of_the_model_are_refused(shards, tmp_path):
    file = tmp_path / "thermal.yaml"
    file.write_text(
        "- {key: thermal, title: thermal infrared, bands: [T], dtypes: [uint16], units: [dn],"
        " wavelengths_nm: [[10000, 12000]]}\n"
    )
    arguments = ["--modalities", str(file), *SMALL, "--data.shards", str(shards), "--model.modalities", "opt"]
    try:
        with pytest.raises(ConfigError, match="modality 'thermal', but no shards of it are given"):
            parse([*arguments, "thermal"], {})
    finally:
        modality._REGISTRY.pop("thermal", None)


def test_no_shards_at_all_are_refused():
    with pytest.raises(ConfigError, match=r"ringmoe shards build.*--data\.shards"):
        parse(SMALL, {})


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, "ZeRO stage 3"),
        ({"zero_optimization": {"stage": 1}, "gradient_clipping": 0.1}, "the run's clip makes it 1.0"),
        ({"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}, "the run's dtype fp32"),
    ],
)
def test_an_engine_file_against_the_run_is_refused(engine, message, arguments, tmp_path):
    file = tmp_path / "engine.json"
    file.write_text(json.dumps(engine))
    with pytest.raises(ConfigError, match=message):
        parse([*arguments, "--parallel.engine", str(file)], {})


def test_a_pruned_model_is_not_spread_over_ranks(arguments, tmp_path):
    file = tmp_path / "pruned.yaml"
    file.write_text(f"model: {{collaborative_kept: {[[0]] * 6}, depths: [2, 2, 2]}}\n")
    with pytest.raises(ConfigError, match=r"pruned model.*use --parallel\.expert-parallel 1"):
        parse(["--config", str(file), *arguments, "--parallel.expert-parallel", "2"], TWO_RANKS)


def test_one_message_says_all_that_is_wrong(arguments):
    with pytest.raises(ConfigError, match=r"(?s)several settings.*no decoders.*no engine file"):
        parse([*arguments, "--model.no-decoders", "--parallel.engine", "zero9"], {})


def test_one_rank_of_a_machine_speaks(arguments):
    other = TWO_RANKS | {"RANK": "1", "LOCAL_RANK": "1"}
    with pytest.raises(SystemExit) as end:
        parse([*arguments, "--model.no-decoders"], other)
    assert end.value.code == 2


def test_a_misspelt_setting_in_a_file_is_named(arguments, tmp_path):
    file = Path(tmp_path / "run.yaml")
    file.write_text("optimiser: {learning_rate: 1e-3}\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: optimiser.*no setting 'learning_rate'"):
        parse(["--config", str(file), *arguments], {})
