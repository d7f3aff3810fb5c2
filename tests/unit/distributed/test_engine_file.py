"""File and run must agree, and every disagreement is refused with its remedy."""

import json

import pytest

from ringmoe.distributed.engine_file import FOLDER, EngineConfig, check_engine_file, read_engine_file
from ringmoe.errors import ConfigError

RUN = EngineConfig(file="mine", dtype="bf16", micro_batch=6, accumulation=2, clip=1.0, lr=1e-3)
FILE = {"zero_optimization": {"stage": 1}}


def test_what_the_file_leaves_open_the_run_fills_in():
    values = {**FILE, "gradient_clipping": "auto", "bf16": {"enabled": "auto"}}
    settled = check_engine_file(values, RUN, world=4)
    assert settled["train_micro_batch_size_per_gpu"] == 6
    assert settled["gradient_accumulation_steps"] == 2
    assert settled["train_batch_size"] == 48
    assert settled["gradient_clipping"] == 1.0
    assert settled["bf16"] == {"enabled": True}
    assert settled["data_types"] == {"grad_accum_dtype": "fp32"}
    assert values["gradient_clipping"] == "auto", "the file's own values stay as they are"


def test_what_both_say_alike_is_accepted():
    values = {
        **FILE,
        "train_batch_size": 48,
        "gradient_clipping": 1,
        "fp16": {"enabled": False},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": "auto"}},
    }
    settled = check_engine_file(values, RUN, world=4)
    assert not settled.keys() & {"optimizer", "fp16"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_batch_size": 12}, r"train_batch_size is 12 but micro-batch x accumulation x 4 ranks makes it 48"),
        ({"train_micro_batch_size_per_gpu": 2}, r"is 2 but the run's micro-batch makes it 6: remove it"),
        ({"gradient_accumulation_steps": 1}, r"is 1 but the run's accumulation makes it 2"),
        ({"gradient_clipping": 0.5}, r"is 0.5 but the run's clip makes it 1.0"),
        ({"bf16": {"enabled": False}}, r"bf16.enabled is false but the run's dtype bf16 makes it true"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, r"several micro-batches makes it \"fp32\""),
        ({"fp16": {"enabled": True}}, r"fp16 is not supported .* remove the section, the run trains in bf16"),
        ({"zero_optimization": {"stage": 3}}, r"stage 3 cannot hold experts .* to 1 or 2"),
        ({"zero_optimization": {"stage": 0}}, r"stage 0 clips by a wrong norm .* to 1 or 2"),
        ({"zero_optimization": {}}, r"stage 0"),
        ({"zero_optimization": {"stage": 7}}, r"stage 7 is unknown"),
        ({"zero_optimization": {"stage": 1, "compute_grad_norm": False}}, r"gradient norm"),
        ({"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}}, r"reduce_bucket_size is \"auto\""),
        ({"zero_force_ds_cpu_optimizer": True}, r"the run's own AdamW"),
        ({"optimizer": {"type": "Lamb"}}, r"optimizer Lamb but the run trains with AdamW: remove"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1.0}}}, r"lr 1.0 but the run sets it 0.001"),
        ({"optimizer": {"params": {"weight_decay": 0.1}}}, r"weight_decay 0.1 but the run sets it for each tensor"),
        ({"zero_optimisation": {}}, r"'zero_optimisation' is not .* did you mean 'zero_optimization'"),
        ({"scheduler": {}}, r"'scheduler' is not a setting that RingMoE trains with; known are"),
        ({"bf16": True}, r"bf16 is true; expected an object of settings"),
    ],
)
def test_every_conflict_is_refused_with_its_remedy(change, said):
    with pytest.raises(ConfigError, match=f"engine file 'mine': .*{said}"):
        check_engine_file({**FILE, **change}, RUN, world=4)


@pytest.mark.parametrize("change", [{"micro_batch": 0}, {"accumulation": 0}, {"clip": -1.0}])
def test_numbers_of_the_run_must_make_sense(change):
    with pytest.raises(ConfigError):
        EngineConfig(**change)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_files_that_come_along_fit_any_run(path, dtype):
    run = EngineConfig(file=path.stem, dtype=dtype, micro_batch=3, accumulation=2)
    assert check_engine_file(read_engine_file(path.stem), run, world=2)["bf16"]["enabled"] == (dtype == "bf16")


def test_every_file_that_comes_along_is_in_the_table():
    table = (FOLDER / "README.md").read_text()
    for path in FOLDER.glob("*.json"):
        assert f"`{path.name}`" in table


def test_files_are_found_by_name_and_path_and_must_be_objects(tmp_path):
    path = tmp_path / "engine.json"
    path.write_text(json.dumps(FILE))
    assert read_engine_file(str(path)) == FILE
    assert read_engine_file("zero2.json") == read_engine_file("zero2")
    with pytest.raises(ConfigError, match=r"no engine file 'zero9'.*zero1, zero2"):
        read_engine_file("zero9")
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="expected an object"):
        read_engine_file(str(path))
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        read_engine_file(str(path))
