"""Weights by global name: what fits is loaded, what does not is listed."""

import pytest
import torch

from ringmoe.checkpoint.pretrained import load_config, load_model, load_weights
from ringmoe.checkpoint.save import save_checkpoint
from ringmoe.checkpoint.store import CheckpointReader, CheckpointWriter
from ringmoe.errors import CheckpointError
from ringmoe.naming import canonical_entries


@pytest.fixture
def released(new_run, config, tmp_path):
    """A model of one run without its optimiser, in bfloat16."""
    run = new_run()
    with CheckpointWriter(tmp_path / "released") as writer:
        for entry in canonical_entries(run.model):
            writer.add(entry.name, entry.tensor.bfloat16())
        writer.commit(config=config)
    return run.model, tmp_path / "released"


def test_a_released_model_loads_and_becomes_the_models_type(released, new_run):
    original, path = released
    seen = []
    model = load_model(path, lambda config: seen.append(config) or new_run(seed=1).model)
    assert seen[0]["model"]["top_k"] == 1
    for entry, source in zip(canonical_entries(model), canonical_entries(original), strict=True):
        assert entry.tensor.dtype == torch.float32
        assert torch.equal(entry.tensor, source.tensor.bfloat16().float())


def test_a_runs_newest_checkpoint_loads_by_the_runs_folder(new_run, config, tmp_path):
    run = new_run()
    for _ in range(2):
        run.train(1)
        save_checkpoint(tmp_path, run, run.state(), config=config)
    model = load_model(tmp_path, lambda _: new_run(seed=1).model)
    assert torch.equal(model.gate.weight, run.model.gate.weight)
    assert load_config(tmp_path)["family"] == "ringmoe"


def test_differences_in_names_are_listed(released, new_run, tmp_path):
    original, path = released
    model = new_run(seed=1).model
    model.gate.bias = None
    model.extra = torch.nn.LayerNorm(2)
    with pytest.raises(CheckpointError, match=r"lacks extra\.bias, extra\.weight; .* no place for gate\.bias"):
        load_weights(model, CheckpointReader(path))
    mismatch = load_weights(model, CheckpointReader(path), strict=False)
    assert mismatch == (("extra.bias", "extra.weight"), ("gate.bias",))
    assert torch.equal(model.gate.weight, original.gate.weight.bfloat16().float())


def test_long_lists_of_names_are_shortened(released, new_run, tmp_path):
    with CheckpointWriter(tmp_path / "many") as writer:
        for n in range(20):
            writer.add(f"tensor.{n}", torch.zeros(1))
        writer.commit(config={})
    with pytest.raises(CheckpointError, match="and 12 more"):
        load_weights(new_run().model, CheckpointReader(tmp_path / "many"))


def test_other_shapes_are_refused(released, new_run):
    model = new_run().model
    model.gate = torch.nn.Linear(4, 5)
    with pytest.raises(CheckpointError, match=r"gate\.weight is \(4, 4\), the model expects \(5, 4\)"):
        load_weights(model, CheckpointReader(released[1]))
