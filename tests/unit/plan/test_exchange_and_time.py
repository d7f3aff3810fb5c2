"""What is exchanged, by hand for a model small enough for it; and an estimate that moves as it must."""

from dataclasses import replace

import pytest

from ringmoe.models import preset
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.plan.cluster import CLUSTERS
from ringmoe.plan.exchange import Collective, collectives
from ringmoe.plan.parameters import flat_buffers, local_parameters
from ringmoe.plan.search import Workload, plan
from ringmoe.plan.setting import EngineFile, Setting
from ringmoe.plan.timing import seconds
from ringmoe.train.optim import decays

MODEL = RingMoEConfig(
    modalities=("opt", "ms"), image_size=32, depths=(1, 2), dims=(16, 32), head_dim=8, window=4, mask_unit=8, top_k=2
)
SETTING = Setting(
    devices=8,
    expert_parallel=4,
    engine=EngineFile(name="zero2", stage=2, reduce_bucket=10**6),
    dtype="bf16",
    recompute="nothing",
    images={"opt": 2, "ms": 1},
    accumulation=3,
)


def _collectives(setting: Setting) -> dict[str, Collective]:
    buffers = flat_buffers(
        local_parameters(MODEL, setting.expert_parallel, decays), setting.devices, setting.expert_parallel
    )
    return {collective.name: collective for collective in collectives(MODEL, setting, buffers)}


def test_rows_to_experts_by_hand():
    found = _collectives(SETTING)
    # three images of 8 x 8 tokens at width 16, and of 4 x 4 at 32 in two blocks; 2 + 2 experts, 2 bytes; there and
    # back, forward and backward; three micro-batches
    rows = 3 * (64 * 16 + 2 * 16 * 32) * 4
    gates = 3 * (64 + 2 * 16) * 4  # in fp32, to the experts only
    assert found["rows to experts"].bytes == rows * 2 * 4 * 3 + gates * 4 * 2 * 3
    assert found["rows to experts"].sent == (rows * 2 * 4 * 3 + gates * 4 * 2 * 3) * 3 // 4
    # 2 x 4 specialised and 4 collaborative experts in three blocks
    assert found["counts of rows"].bytes == 12 * 8 * 3 * 3
    again = _collectives(replace(SETTING, recompute="blocks"))
    assert again["rows to experts"].bytes == rows * 2 * 6 * 3 + gates * 4 * 3 * 3
    assert "rows to experts" not in _collectives(replace(SETTING, expert_parallel=1))


def test_gradients_and_weights_by_hand():
    found = _collectives(SETTING)
    parameters = local_parameters(MODEL, 4, decays)
    shared = sum(p.numel for p in parameters if not p.spread)
    spread = MODEL.num_params() - shared
    assert found["gradients of shared parameters"].bytes == 3 * 2 * shared
    assert found["gradients of spread experts"].bytes == 3 * 2 * spread // 4
    assert (found["gradients of spread experts"].ranks, found["gradients of spread experts"].stride) == (2, 4)
    assert found["gradients of shared parameters"].sent == 2 * 3 * 2 * shared * 7 // 8
    assert 0 <= found["weights of shared parameters"].bytes - 2 * shared < 2 * 2 * 2 * 8
    first = _collectives(replace(SETTING, engine=EngineFile(name="zero1", stage=1)))
    assert first["gradients of spread experts"].bytes < found["gradients of spread experts"].bytes


def test_a_collective_takes_the_slower_link():
    cluster = replace(
        CLUSTERS["h200"], intra_gb_s=100, inter_gb_s=10, traffic_share=0.5, intra_latency_us=2, inter_latency_us=20
    )
    inside = Collective(name="x", operation="all-gather", bytes=8 * 10**9, calls=1, ranks=8)
    assert seconds(inside, cluster) == pytest.approx(7e9 / 50e9 + 7 * 2e-6)
    # 16 ranks on two nodes: 15/16 of the bytes over the eight links of a node
    across = replace(inside, ranks=16, operation="all-reduce")
    assert seconds(across, cluster) == pytest.approx(max(15e9 / 40e9, 15e9 / 50e9) + 30 * 20e-6)
    # every fourth rank: two of a node's links serve one group
    strided = replace(inside, ranks=4, stride=4)
    assert seconds(strided, cluster) == pytest.approx(6e9 / 10e9 + 3 * 20e-6)


def test_more_devices_need_less_memory_and_recomputing_trades_memory_for_time():
    work, cluster = Workload(preset("swin-88m"), "bf16", {}, decays), CLUSTERS["h100"]
    setting = replace(SETTING, images={"opt": 8, "ms": 8, "sar_l1": 8, "sar_l2": 8})
    few, many = (plan(work, replace(setting, devices=devices), cluster) for devices in (8, 64))
    assert many.memory.optimiser < few.memory.optimiser
    assert many.memory.weights == pytest.approx(few.memory.weights, rel=1e-3)
    again = plan(work, replace(setting, recompute="blocks"), cluster)
    assert again.memory.activations < few.memory.activations / 2
    assert again.time.total > few.time.total
    assert few.time.efficiency < cluster.matrix_share
    whole = plan(work, replace(setting, engine=EngineFile(name="zero1", stage=1)), cluster)
    assert whole.memory.gradients > few.memory.gradients
    assert whole.time.gradients < few.time.gradients


def test_offloading_moves_state_to_the_host():
    work, cluster = Workload(preset("swin-88m"), "bf16", {}, decays), CLUSTERS["h100"]
    setting = replace(SETTING, images={"opt": 1, "ms": 1, "sar_l1": 1, "sar_l2": 1}, accumulation=1)
    device, host = (
        plan(work, replace(setting, engine=EngineFile(name="x", stage=2, offload=offload)), cluster)
        for offload in (False, True)
    )
    assert device.memory.host == host.memory.optimiser == 0
    assert host.memory.host > device.memory.optimiser
    assert host.memory.peak < device.memory.peak
    assert host.time.optimiser > device.time.optimiser
