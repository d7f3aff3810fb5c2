"""Carrying out plans on a small model: identities first, then what comes out as a checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ringmoe.batch import Batch
from ringmoe.checkpoint.pretrained import load_model
from ringmoe.checkpoint.store import CheckpointReader, CheckpointWriter
from ringmoe.compress.apply import source_config
from ringmoe.compress.ep import PruningRule
from ringmoe.compress.plan import CompressionPlan, Options, make_plan
from ringmoe.compress.save import needed_bytes, save
from ringmoe.compress.usage import measure
from ringmoe.errors import CheckpointError, ConfigError
from ringmoe.models import build_model, config_from
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.naming import canonical_entries


def compress(reader: CheckpointReader, out: Path, mode: str, usage=None, **options) -> CheckpointReader:
    plan = make_plan(source_config(reader), Options(mode=mode, modalities=("opt",), **options), usage)
    save(plan, reader, out)
    return CheckpointReader(out)


def load(reader: CheckpointReader) -> RingMoE:
    return load_model(reader.path, lambda values: build_model(config_from(values))).eval()


@pytest.fixture(scope="module")
def usage(model, images):
    batch = Batch({key: images(key) for key in model.config.modalities})
    return measure(model, [batch, batch], source="made up tiles")


@pytest.fixture(scope="module")
def twins(config, build_model, write_checkpoint, tmp_path_factory) -> CheckpointReader:
    """A model whose experts of one layer, the shared one included, are all the same."""
    model = build_model(config)
    shared = {e.name: e.tensor for e in canonical_entries(model) if ".shared." in e.name}
    for entry in canonical_entries(model):
        layer, inside, part = entry.name.partition(".moe.")
        if inside and not part.startswith("router."):
            entry.tensor.copy_(shared[f"{layer}.moe.shared.{part.rpartition('.')[2]}"])
    return write_checkpoint(model, tmp_path_factory.mktemp("twins") / "model")


def dense_weights(reader: CheckpointReader) -> dict[str, torch.Tensor]:
    return {name: reader.tensor(name) for name in reader.names if ".moe.shared." in name}


def test_summing_identical_experts_is_nine_times_one_exactly(twins, tmp_path):
    summed = dense_weights(compress(twins, tmp_path / "ks", "ks"))
    assert len(summed) == 12
    for name, tensor in summed.items():
        assert torch.equal(tensor, (9 * twins.tensor(name).double()).float()), name


def test_averaging_identical_experts_is_one_of_them_exactly(twins, tmp_path):
    for name, tensor in dense_weights(compress(twins, tmp_path / "ka", "ka")).items():
        assert torch.equal(tensor, twins.tensor(name)), name


def test_the_literal_rank_reproduces_summing_exactly(reader, tmp_path):
    summed = dense_weights(compress(reader, tmp_path / "ks", "ks"))
    literal = dense_weights(compress(reader, tmp_path / "literal", "kc", rank="literal"))
    truncated = dense_weights(compress(reader, tmp_path / "kc", "kc"))
    assert all(torch.equal(literal[name], summed[name]) for name in summed)
    assert all(torch.equal(truncated[name], summed[name]) == (name[-2] == "b") for name in summed)


def test_summing_against_a_merge_by_hand(model, reader, tmp_path):
    summed = compress(reader, tmp_path / "ks", "ks", keep_decoders=True)
    parts = {entry.name: entry.tensor.double() for entry in canonical_entries(model)}
    for block in range(3):
        for part in ("w1", "b1", "w2", "b2"):
            names = [
                *(f"specialised.opt.{k}" for k in range(4)),
                *(f"collaborative.{k}" for k in range(4)),
                "shared",
            ]
            by_hand = sum(parts[f"blocks.{block}.moe.{name}.{part}"] for name in names)
            found = summed.tensor(f"blocks.{block}.moe.shared.{part}")
            assert torch.allclose(found.double(), by_hand, rtol=1e-6, atol=1e-7)
    untouched = [name for name in summed.names if ".moe." not in name]
    assert {"decoders.opt.weight", "positions", "mask_token", "norm.bias", "merges.0.norm.weight"} <= set(untouched)
    assert all(torch.equal(summed.tensor(name), parts[name].float()) for name in untouched)
    assert not [name for name in summed.names if "sar_l2" in name or "router" in name or "collaborative" in name]


def test_the_dense_model_computes_what_its_merged_ffn_says(reader, tmp_path, images):
    merged = load(compress(reader, tmp_path / "ka", "ka"))
    x_TD = torch.randn(5, 16)
    w1, b1, w2, b2 = (merged.get_parameter(f"blocks.2.moe.shared.{part}") for part in ("w1", "b1", "w2", "b2"))
    expected_TD = torch.nn.functional.gelu(x_TD @ w1 + b1) @ w2 + b2
    assert torch.allclose(merged.blocks[2].moe(x_TD, (5,))[0], expected_TD, atol=1e-6)
    assert all(map_BDHW.isfinite().all() for map_BDHW in merged.features(images("opt"), "opt"))


def test_an_extracted_model_computes_bit_for_bit_what_the_whole_does(model, reader, tmp_path, images):
    extracted = compress(reader, tmp_path / "opt", "extract")
    assert list(extracted.config["inputs"]) == ["opt"]
    assert extracted.manifest.step == 12
    whole, part = model.features(images("opt"), "opt"), load(extracted).features(images("opt"), "opt")
    assert all(torch.equal(a, b) for a, b in zip(whole, part, strict=True))


def test_pruning_nothing_is_no_pruning_bit_for_bit(reader, tmp_path, images, usage):
    extracted = compress(reader, tmp_path / "opt", "extract")
    pruned = compress(reader, tmp_path / "ep", "ep", usage, rule=PruningRule("top", 1.0))
    assert pruned.config == extracted.config
    assert all(torch.equal(pruned.tensor(name), extracted.tensor(name)) for name in extracted.names)


def test_pruned_gates_run_over_the_survivors(model, reader, tmp_path, images, usage):
    pruned = compress(reader, tmp_path / "ep", "ep", usage, rule=PruningRule("top", 0.5))
    kept = source_config(pruned).collaborative_kept
    assert kept is not None
    assert all(len(ids) == 2 for ids in kept)
    for block, ids in enumerate(kept):
        frequencies = usage.collaborative(block, "opt")
        assert min(frequencies[k] for k in ids) >= max(frequencies[k] for k in range(4) if k not in ids)
        gate = f"blocks.{block}.moe.router.collaborative.gate"
        assert torch.equal(pruned.tensor(gate), model.get_parameter(gate)[:, list(ids)])
        expert = f"blocks.{block}.moe.collaborative.{ids[1]}.w2"
        assert torch.equal(pruned.tensor(expert), reader.tensor(expert))
    again = load(pruned)
    assert all(map_BDHW.isfinite().all() for map_BDHW in again.features(images("opt"), "opt"))
    counted = measure(again, [Batch({"opt": images("opt")})], source="again")
    assert all(counted.collaborative(b, "opt")[k] == 0 for b, ids in enumerate(kept) for k in range(4) if k not in ids)


@pytest.mark.parametrize("mode", ["extract", "ep", "ks", "ka", "kc"])
@pytest.mark.parametrize("keep_decoders", [False, True])
def test_the_ledger_is_what_lies_on_the_disk(reader, tmp_path, usage, mode, keep_decoders):
    out = compress(reader, tmp_path / "out", mode, usage, keep_decoders=keep_decoders)
    out.verify()
    plan = out.document("compression.json")["plan"]
    sizes = {name: torch.Size(entry.shape).numel() for name, entry in out.manifest.tensors.items()}
    assert sum(sizes.values()) == sum(plan["ledger"][-1]["parts"].values())
    assert sum(n for name, n in sizes.items() if "decoders" in name) == plan["ledger"][-1]["parts"]["decoders"]
    on_disk = sum(path.stat().st_size for path in out.path.iterdir())
    assert on_disk < needed_bytes(CompressionPlan.from_dict(plan), reader)


def test_the_scale_of_the_sums_is_reported(twins, reader, tmp_path):
    summed = compress(twins, tmp_path / "ks", "ks").document("compression.json")["merges"]
    assert set(summed) == {f"blocks.{b}.moe.shared.{w}" for b in range(3) for w in ("w1", "w2")}
    assert all(merge["scale"] == pytest.approx(9) and merge["energy"] == 1 for merge in summed.values())
    truncated = compress(reader, tmp_path / "kc", "kc").document("compression.json")["merges"]
    assert all(1 < merge["scale"] < 9 and 0.2 < merge["energy"] < 0.9 for merge in truncated.values())


def test_bfloat16_stays_bfloat16(model, write_checkpoint, tmp_path):
    source = write_checkpoint(model, tmp_path / "bf16", dtype=torch.bfloat16)
    out = compress(source, tmp_path / "kc", "kc")
    assert {out.manifest.tensors[name].dtype for name in out.names} == {"bfloat16"}
    assert needed_bytes(make_plan(source_config(out), Options(mode="extract")), out) < 2**21


def test_without_a_shared_expert_the_others_become_one(build_model, write_checkpoint, config, tmp_path):
    source = write_checkpoint(build_model(replace(config, shared=False)), tmp_path / "source")
    out = compress(source, tmp_path / "ks", "ks")
    names = [*(f"specialised.opt.{k}" for k in range(4)), *(f"collaborative.{k}" for k in range(4))]
    by_hand = sum(source.tensor(f"blocks.0.moe.{name}.w1").double() for name in names).float()
    assert torch.equal(out.tensor("blocks.0.moe.shared.w1"), by_hand)
    assert out.document("compression.json")["merges"]["blocks.0.moe.shared.w1"]["scale"] is None


def test_bad_sources_are_refused_and_leave_nothing(model, config, build_model, write_checkpoint, tmp_path):
    poisoned = build_model(config)
    poisoned.get_parameter("blocks.2.moe.shared.w2").data[3, 4] = float("nan")
    source = write_checkpoint(poisoned, tmp_path / "nan")
    with pytest.raises(CheckpointError, match=r"1 of 1024 values of blocks\.2\.moe\.shared\.w2 are not finite"):
        compress(source, tmp_path / "out", "kc")
    with CheckpointWriter(tmp_path / "short") as writer:
        writer.add("norm.bias", torch.zeros(16))
        writer.commit(config=source.config)
    with pytest.raises(CheckpointError, match=r"lacks \d+ tensors that its config.json promises: blocks\.0"):
        compress(CheckpointReader(tmp_path / "short"), tmp_path / "out", "ks")
    with pytest.raises(CheckpointError, match="nan exists already"):
        compress(source, tmp_path / "nan", "ks")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nan", "short"]


def test_a_provisional_plan_is_not_carried_out(reader, config, tmp_path):
    plan = make_plan(config, Options(mode="ep", modalities=("opt",)))
    with pytest.raises(ConfigError, match="which experts stay is not decided"):
        save(plan, reader, tmp_path / "out")


def test_other_families_are_refused(tmp_path):
    with CheckpointWriter(tmp_path / "other") as writer:
        writer.commit(config={"format": 1, "family": "csmoe", "model": {}, "inputs": {}})
    with pytest.raises(ConfigError, match="unknown model family 'csmoe'"):
        source_config(CheckpointReader(tmp_path / "other"))
