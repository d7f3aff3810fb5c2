"""Compression on calibration tiles: what is made layer by layer, and the command as a person types it."""

import json
from dataclasses import replace

import pytest
import torch

from ringmoe import counter
from ringmoe.batch import Batch
from ringmoe.checkpoint.pretrained import load_model
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.cli import prune
from ringmoe.compress import beyond, ep_loss, kc, memory
from ringmoe.compress.apply import source_config
from ringmoe.compress.calibration import load_whole, open_tiles
from ringmoe.compress.ep import PruningRule
from ringmoe.compress.extensions import Extensions
from ringmoe.compress.heal import distance, heal
from ringmoe.compress.layers import Layers
from ringmoe.compress.plan import DENSE_MODES, CompressionPlan, Options, make_plan
from ringmoe.compress.usage import measure
from ringmoe.compress.walk import Walk
from ringmoe.data.workfolder import take_lock
from ringmoe.errors import CheckpointError, ConfigError
from ringmoe.models import build_model, config_from
from ringmoe.models.ringmoe.export import to_timm
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.models.ringmoe.objective import masked_error
from ringmoe.naming import canonical_entries


def load(path):
    return load_model(path, lambda values: build_model(config_from(values))).eval()


def compress(reader, out, tiles, mode="kc", usage=None, **extensions):
    options = Options(mode=mode, modalities=("opt",), keep_decoders=True, extensions=Extensions(**extensions))
    plan = make_plan(source_config(reader), options, usage, calibration=tiles.source)
    beyond.save(plan, reader, out, tiles)
    return CheckpointReader(out)


def errors_of(reader):
    merges = reader.document("compression.json")["merges"]
    return [merges[f"blocks.{block}.moe.shared.w2"]["error"] for block in range(3)]


@pytest.fixture(scope="module")
def tiles(trained, shards):
    with open_tiles(trained, [shards], modalities=("opt",), num_tiles=9) as opened:
        yield opened


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["ringmoe-prune", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            prune.main()
        printed = capsys.readouterr()
        return exit_.value.code, " ".join((printed.out + printed.err).split())

    return run


def test_the_walk_meets_the_tokens_of_the_whole_model(trained, tiles):
    walk = Walk(tiles.config, trained, tiles.batches(), masks=0, sequential=False)
    plan = make_plan(source_config(trained), Options(mode="ks", modalities=("opt",)))
    layers = Layers(plan, trained)
    model, seen = load_whole(tiles.config, trained).eval(), []
    for block in model.blocks:
        block.moe.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output[0])))
    (batch, *_) = tiles.batches()
    with torch.no_grad():
        model.features(batch.images["opt"], "opt")
    for block, (x_TD, y_TD) in zip(plan.blocks, seen, strict=True):
        tokens = walk.enter(block.block)[0]
        torch.testing.assert_close(tokens.inputs, x_TD, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tokens.y_TD, y_TD, atol=1e-4, rtol=1e-4)
        assert walk.leave(layers(block).ffn) > 0.1


@pytest.mark.parametrize("mode", DENSE_MODES)
def test_layers_merged_as_a_whole_are_those_merged_tensor_by_tensor(trained, tiles, tmp_path, mode):
    usage = measure(load_whole(tiles.config, trained), tiles.batches(), source="tiles")
    equal = replace(usage, counts=tuple(tuple((n,) * 8 for n in layer) for layer in usage.tokens))
    plain = compress(trained, tmp_path / "plain", tiles, mode)
    weighed = compress(trained, tmp_path / "weighed", tiles, mode, equal, weigh_by_usage=True)
    assert plain.names == weighed.names
    for name in plain.names:
        torch.testing.assert_close(weighed.tensor(name), plain.tensor(name), atol=1e-5, rtol=1e-5)


def test_alignment_undoes_any_order_of_the_experts_hidden_units(trained, tiles, tmp_path, write_checkpoint):
    shuffled = load_whole(source_config(trained), trained)
    for entry in canonical_entries(shuffled):
        layer, _, part = entry.name.rpartition(".")
        if ".moe.specialised" not in entry.name or part == "b2":
            continue
        order_F = torch.randperm(
            entry.tensor.shape[0 if part == "w2" else -1], generator=torch.Generator().manual_seed(len(layer))
        )
        entry.tensor.copy_(entry.tensor[order_F] if part == "w2" else entry.tensor[..., order_F])
    reader = write_checkpoint(shuffled, tmp_path / "shuffled")
    for align in ("weights", None):
        ours = compress(trained, tmp_path / f"{align}", tiles, "ks", align=align)
        theirs = compress(reader, tmp_path / f"{align} shuffled", tiles, "ks", align=align)
        same = torch.allclose(ours.tensor("blocks.1.moe.shared.w1"), theirs.tensor("blocks.1.moe.shared.w1"), atol=1e-5)
        assert same == (align is not None)


def test_refit_and_healing_bring_the_result_nearer_to_the_sparse_model(trained, tiles, tmp_path):
    teacher = load_whole(tiles.config, trained).eval()
    images = next(iter(tiles.batches())).images["opt"]

    def far(path):
        with torch.no_grad():
            return distance(load(path).features(images, "opt"), teacher.features(images, "opt")).item()

    # whitening and refit change W_2; without either the walk measures the plain merge
    plain = compress(trained, tmp_path / "plain", tiles, align="activations")
    refitted = compress(trained, tmp_path / "refit", tiles, align="activations", refit=True)
    healed = compress(trained, tmp_path / "healed", tiles, refit=True, heal=20)
    assert all(after < 0.7 * before for after, before in zip(errors_of(refitted), errors_of(plain), strict=True))
    assert far(refitted.path) < far(plain.path)
    assert far(healed.path) < far(refitted.path)
    decoder = "decoders.opt.weight"
    assert torch.equal(healed.tensor(decoder), trained.tensor(decoder))


def test_sequential_calibration_follows_the_layers_that_are_made(trained, tiles, tmp_path):
    parallel = compress(trained, tmp_path / "parallel", tiles, refit=True)
    sequential = compress(trained, tmp_path / "sequential", tiles, refit=True, sequential=True)
    first, last = "blocks.0.moe.shared.w2", "blocks.2.moe.shared.w2"
    assert torch.equal(parallel.tensor(first), sequential.tensor(first))
    assert not torch.equal(parallel.tensor(last), sequential.tensor(last))


def test_leaving_an_expert_out_is_the_pruned_model(model, images):
    batch = Batch({"opt": images("opt")})
    found = ep_loss.measure(model, [batch], masks=1, source="made up")
    assert [len(increases["opt"]) for increases in found.by_block] == [4, 4, 4]
    pruned = RingMoE(model.config.pruned([range(4), (0, 1, 3), range(4)])).eval()
    tensors = {entry.name: entry.tensor for entry in canonical_entries(model)}
    for entry in canonical_entries(pruned):
        whole = tensors[entry.name]
        entry.tensor.copy_(whole if whole.shape == entry.tensor.shape else whole[:, [0, 1, 3]])
    alone = ep_loss.measure(pruned, [batch], masks=1, source="made up")
    masked = Batch({"opt": replace(images("opt"), keys_B=counter.mix(images("opt").keys_B, 0))})
    with torch.no_grad():
        errors = [masked_error(each.reconstruct(masked)["opt"]).item() for each in (model, pruned)]
    assert found.by_block[1]["opt"][2] == pytest.approx(errors[1] - errors[0], abs=1e-6)
    assert len(alone.by_block[1]["opt"]) == 3


def test_experts_that_are_missed_most_stay(model):
    increases = {"opt": (0.3, -0.1, 0.5, 0.2), "sar_l2": (0.0, 9.0, 0.0, 0.0)}
    losses = ep_loss.LossIncrease(by_block=(increases,) * 3, source="made up")

    def kept(*modalities, share):
        extensions = Extensions(choose_by="loss")
        options = Options(mode="ep", modalities=modalities, rule=PruningRule("top", share), extensions=extensions)
        plan = make_plan(model.config, options, losses=losses, calibration="made up")
        plan.check_decided()
        return plan.blocks[2].kept

    assert kept("opt", share=0.25) == (2,)
    assert kept("opt", share=0.5) == (0, 2)
    assert kept("opt", "sar_l2", share=0.25) == (1, 2)


def test_one_command_refits_and_says_so(command, trained, shards, tmp_path):
    out = tmp_path / "out"
    arguments = ("--mode", "kc", "--modality", "opt", "--refit", "--shards", shards, "--calibration-tiles", 9)
    code, text = command(trained.path, out, *arguments)
    assert code == 0, text
    assert "beyond the paper: W_2 and b_2 refitted, ridge 0.001" in text
    assert f"calibration: 9 tiles of each modality of {shards}" in text
    assert "of memory are needed" in text
    assert "output error" in text
    plan = CompressionPlan.from_dict(CheckpointReader(out).document("compression.json")["plan"])
    assert plan.options.extensions == Extensions(refit=True, tiles=9)
    assert json.loads((out / "config.json").read_text())["model"]["num_specialised"] == 0


def test_a_dry_run_needs_neither_weights_nor_tiles(command):
    options = ("--refit", "--align", "activations", "--heal", 100, "--sequential")
    code, text = command("--preset", "ringmoe-14b", "--mode", "kc", "--modality", "opt", "--dry-run", *options)
    assert code == 0, text
    assert "1,062,009,636" in text
    assert "hidden units aligned by activations, W_2 and b_2 refitted" in text
    assert "100 steps of distillation" in text


def test_what_would_do_nothing_is_refused(command, trained, shards, tmp_path):
    complaints = [
        ("ep", ("--refit",), "--refit does nothing here: mode ep has no merged W_2"),
        ("ks", ("--whiten",), "--whiten does nothing here: mode ks truncates nothing"),
        ("kc", ("--whiten", "--rank", "literal"), "--rank literal truncates nothing"),
        ("extract", ("--heal", 5), "--heal does nothing here"),
        ("extract", ("--align", "weights"), "--align does nothing here"),
        ("kc", ("--choose-by", "loss"), "chooses no experts"),
        ("kc", ("--sequential",), "add one of them"),
        ("kc", ("--ridge", 0.1), "--ridge does nothing without --refit"),
        ("kc", ("--refit", "--ridge", 0), "expected a weight above 0"),
        ("kc", ("--refit", "--ridge", "nan"), "expected a weight above 0"),
        ("kc", ("--refit", "--device", "auto"), "--device and --workers do nothing here"),
        ("kc", ("--calibration-tiles", 9), "--calibration-tiles does nothing here"),
        ("ep", ("--shards", shards, "--calibration-masks", 1), "--calibration-masks does nothing here"),
        ("kc", ("--keep", 0.5), "--keep, --percentile and --threshold do nothing in mode kc"),
        ("ks", ("--rank", "literal"), "--rank does nothing in mode ks"),
        ("kc", ("--usage", "u"), "--usage does nothing here"),
        ("kc", ("--shards", shards), "--shards does nothing here"),
        ("kc", ("--align", "weights", "--workers", 2), "--device and --workers do nothing here"),
        ("kc", ("--refit",), "this is measured on tiles; give --shards"),
        ("kc", ("--weigh-by-usage",), "what each expert weighs is not decided"),
        ("ep", ("--choose-by", "loss", "--percentile", 75), "say how many stay"),
        ("ep", ("--choose-by", "loss"), "this is measured on tiles"),
        ("kc", ("--refit", "--shards", shards, "--calibration-tiles", 1, "--calibration-masks", 0), "refit of 64"),
    ]
    for mode, options, complaint in complaints:
        code, text = command(trained.path, tmp_path / "out", "--mode", mode, "--modality", "opt", *options)
        assert code == 2, (options, text)
        assert complaint in text, text
    assert not list(tmp_path.iterdir())


def test_more_memory_than_there_is_is_refused(trained, tiles, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match=r"of memory are needed, 1\.0 kB are available"):
        compress(trained, tmp_path / "out", tiles, refit=True)
    assert not list(tmp_path.iterdir())


def test_too_few_tokens_are_known_before_anything_is_read(trained, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(beyond, "verify", lambda *_: pytest.fail("read before it was checked"))
    with open_tiles(trained, [shards], modalities=("opt",), num_tiles=1) as tiles:
        for options in ({"refit": True}, {"whiten": True}):
            what = "refit of 64 hidden units" if "refit" in options else "whitened truncation at rank 2"
            extensions = Extensions(masks=0, **options)
            plan = make_plan(source_config(trained), Options(mode="kc", modalities=("opt",), extensions=extensions))
            tiles.num_tiles = 1 if "refit" in options else 0
            with pytest.raises(ConfigError, match=f"{what} on .* calibration tokens"):
                beyond.require_enough(plan, tiles)


def test_whitening_is_refused_where_a_rank_of_ones_own_is_full(trained):
    def plan(rank):
        return make_plan(
            source_config(trained),
            Options(mode="kc", modalities=("opt",), rank=rank, extensions=Extensions(whiten=True)),
        )

    assert plan(8).blocks[1].merged[0].rank == 8  # full in the first block, not in those behind
    with pytest.raises(ConfigError, match="--rank literal truncates nothing"):
        plan("literal")


def test_the_certified_excess_is_kept_unless_tokens_whiten(trained, tiles, tmp_path):
    aligned = compress(trained, tmp_path / "aligned", tiles, align="weights").document("compression.json")
    assert all(0 < merge["excess"] <= 1e-3 for merge in aligned["merges"].values())
    whitened = compress(trained, tmp_path / "whitened", tiles, whiten=True).document("compression.json")
    assert all(merge["excess"] is None for merge in whitened["merges"].values())


def test_a_failing_decomposition_is_told_in_words(trained, tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(kc, "truncate", lambda *_: (_ for _ in ()).throw(ArithmeticError("no rank-2 approximation")))
    with pytest.raises(CheckpointError, match=r"the experts of block 0 cannot be merged with .*: no rank-2"):
        compress(trained, tmp_path / "out", tiles, align="weights")
    assert not list(tmp_path.iterdir())


def test_healing_tells_the_distance_and_nothing_of_the_merge(command, trained, shards, tmp_path):
    out = tmp_path / "out"
    arguments = ("--mode", "ks", "--modality", "opt", "--heal", 5, "--shards", shards, "--calibration-tiles", 4)
    code, text = command(trained.path, out, *arguments)
    assert code == 0, text
    report = CheckpointReader(out).document("compression.json")
    assert report["merges"] == {}
    before, after = report["healing"]["before"], report["healing"]["after"]
    assert 0 < after < before
    assert f"{before:.4f} before healing, {after:.4f} after" in text


def test_healing_that_diverges_writes_nothing(trained, tiles, tmp_path, monkeypatch):
    teacher = load_whole(tiles.config, trained)
    student = load_whole(tiles.config, trained)
    next(student.blocks[1].moe.parameters()).data.fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"before the first step of healing the distance .* is nan"):
        heal(student, teacher, tiles.batches(), judges=tiles.batches, steps=1, masks=0)
    monkeypatch.setattr("ringmoe.compress.heal._LR", 1e30)
    with pytest.raises(CheckpointError, match="the distance to the sparse model's maps is"):
        compress(trained, tmp_path / "out", tiles, heal=5)
    assert not list(tmp_path.iterdir())


def test_two_at_once_do_not_destroy_each_other(trained, tiles, tmp_path):
    out, unfinished = tmp_path / "out", tmp_path / "out.tmp" / "weights-00000.safetensors"
    unfinished.parent.mkdir()
    unfinished.write_bytes(b"of another")
    with (tmp_path / "out.lock").open("a") as file:
        assert take_lock(file)
        with pytest.raises(CheckpointError, match="in the hands of another process"):
            compress(trained, out, tiles, align="weights")
    assert unfinished.exists()
    compress(trained, out, tiles, align="weights")  # the other one has crashed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_would_be_refused_later_is_refused_before_measuring(command, trained, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(prune, "calibrate", lambda *_, **__: pytest.fail("measured first"))
    monkeypatch.setattr(prune, "load_whole", lambda *_: pytest.fail("measured first"))
    monkeypatch.setattr("ringmoe.checkpoint.disk.free_bytes", lambda _: 10)
    for choice in ("frequency", "loss"):
        options = ("--mode", "ep", "--modality", "opt", "--choose-by", choice, "--shards", shards)
        assert "exists already" in command(trained.path, trained.path, *options)[1]
        code, text = command(trained.path, tmp_path / "out", *options)
        assert code == 2
        assert "are needed but 10 B are free" in text
    options = ("--weigh-by-usage", "--refit", "--calibration-tiles", 1, "--calibration-masks", 0, "--shards", shards)
    assert "refit of 64" in command(trained.path, tmp_path / "out", "--mode", "ks", "--modality", "opt", *options)[1]


def test_a_control_group_limits_the_memory(tmp_path):
    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert memory.available_bytes(tmp_path) is None
    write("proc/meminfo", "MemTotal:  9 kB\nMemAvailable:  8 kB\n")
    assert memory.available_bytes(tmp_path) == 8192
    write("proc/self/cgroup", "0::/job/step\n")
    for group, limit in (("job", "6000"), ("job/step", "max")):
        write(f"sys/fs/cgroup/{group}/memory.max", limit + "\n")
        write(f"sys/fs/cgroup/{group}/memory.current", "5000\n")
    assert memory.available_bytes(tmp_path) == 1000
    write("sys/fs/cgroup/job/memory.stat", "anon 7\ninactive_file 300\nactive_file 40\n")
    assert memory.available_bytes(tmp_path) == 1340
    write("proc/self/cgroup", "5:cpu:/\n4:memory:/elsewhere\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "3500\n")
    assert memory.available_bytes(tmp_path) == 0


def test_a_refitted_result_is_timms_swin(trained, tiles, images, tmp_path):
    timm = pytest.importorskip("timm", reason="timm's SwinV2 is the reference; it comes with the dev extra")
    compress(trained, tmp_path / "refitted", tiles, refit=True)
    ours = load(tmp_path / "refitted")
    config = ours.config
    theirs = timm.models.swin_transformer_v2.SwinTransformerV2(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=3,
        embed_dim=config.dims[0],
        depths=config.depths,
        num_heads=[dim // config.head_dim for dim in config.dims],
        window_size=config.window,
        num_classes=0,
        drop_path_rate=0.0,
    ).eval()
    state = {entry.name: entry.tensor for entry in canonical_entries(ours)}
    theirs.load_state_dict(to_timm(state, config, "opt"), strict=True)
    theirs.patch_embed.register_forward_hook(lambda _module, _inputs, x_BHWD: x_BHWD + ours.positions)
    with torch.no_grad():
        expected = theirs.forward_features(images("opt").pixels_BCHW).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours.features(images("opt"), "opt")[-1], expected, atol=1e-5, rtol=1e-5)
