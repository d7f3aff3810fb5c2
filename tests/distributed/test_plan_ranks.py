"""What a plan says of memory and exchange is, to the byte, what DeepSpeed's ranks hold and send."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.config import Recompute
from ringmoe.plan.activations import activations
from ringmoe.plan.exchange import collectives
from ringmoe.plan.memory import host_buffers, optimiser_state, step_gradients, whole_gradients
from ringmoe.plan.parameters import flat_buffers, local_parameters
from ringmoe.plan.setting import EngineFile, Setting
from ringmoe.testing.ranks import run_ranks
from ringmoe.train.optim import decays
from tests.unit.plan.measure import saved_by_autograd

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("engine")]

# odd widths, so that every buffer is padded; the last block's experts are larger than all the rest
MODEL = RingMoEConfig(
    modalities=("opt", "sar_l2"), image_size=32, depths=(1, 2), dims=(18, 42), head_dim=6, window=4, mask_unit=8
)
IMAGES = {"opt": 2, "sar_l2": 1}


class Case(NamedTuple):
    engine: str = "zero1"
    ep: int = 1
    dtype: str = "fp32"
    accumulation: int = 1
    recompute: Recompute = "nothing"

    def setting(self, world: int) -> Setting:
        return Setting(
            devices=world,
            expert_parallel=self.ep,
            engine=EngineFile.read(self.engine),
            dtype=self.dtype,
            recompute=self.recompute,
            images=IMAGES,
            accumulation=self.accumulation,
        )


class Found(NamedTuple):
    """Bytes that one rank held and handed to collectives."""

    weights: int
    optimiser: int
    host: int
    whole_gradients: int
    step_gradients: int
    activations: int
    exchanged: Counter[str]


def cases(world: int) -> list[Case]:
    sizes = [ep for ep in (1, 2, 4) if world % ep == 0]
    kinds = [("fp32", 1), ("bf16", 1), ("bf16", 2)]
    found = [Case(*values, *kind) for *values, kind in itertools.product(("zero1", "zero2"), sizes, kinds)]
    found += [
        Case("zero1", sizes[-1], "fp32", 2),
        Case("zero2", sizes[-1], "fp32", 2, "blocks"),
        Case("zero1", sizes[-1], "bf16", 1, "experts"),
    ]
    # on the host what was on the device
    return found + [Case("offload", 2, dtype, accumulation) for dtype, accumulation in kinds if world == 2]


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    """Of the storages behind some tensors, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


@contextmanager
def _counted(sent: Counter[str]) -> Any:
    """Counts the bytes of arrays (not of scalars) that are handed to collectives of more than one rank."""
    import deepspeed.comm

    def count(module: Any, name: str, which: int) -> Callable[[], None]:
        real = getattr(module, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            tensor = args[which]
            if tensor.numel() > 1 and dist.get_world_size(kwargs.get("group")) > 1:
                kind = "counts of rows" if tensor.dtype == torch.int64 else name
                sent[kind] += tensor.numel() * tensor.element_size()
            return real(*args, **kwargs)

        setattr(module, name, counting)
        return lambda: setattr(module, name, real)

    undo = [
        count(dist, "all_to_all_single", 1),
        count(deepspeed.comm, "all_reduce", 0),
        count(deepspeed.comm, "all_gather_into_tensor", 0),
    ]
    yield
    for each in undo:
        each()


def _run(case: Case) -> Found:
    """One optimiser step of a run as it is really started."""
    from ringmoe.batch import Batch
    from ringmoe.data.loader import DataConfig
    from ringmoe.distributed.launch import World
    from ringmoe.testing.batches import random_images
    from ringmoe.train.build import build_model_and_engine
    from ringmoe.train.run import BatchConfig, ParallelConfig, RunConfig

    rank, size = dist.get_rank(), dist.get_world_size()
    parallel = ParallelConfig(expert_parallel=case.ep, engine=case.engine, dtype=case.dtype, recompute=case.recompute)
    data, batch = DataConfig(micro_batch=sum(IMAGES.values())), BatchConfig(accumulation=case.accumulation)
    config = RunConfig(model=MODEL, parallel=parallel, data=data, batch=batch)
    world = World(rank=rank, local_rank=rank, size=size, launcher="none", device=torch.device("cpu"))
    model, engine = build_model_and_engine(config, world)
    inner = engine._inner
    optimizer, parameters = inner.optimizer, list(model.parameters())

    def gradients() -> int:
        made = [g for p in parameters for g in (p.grad, getattr(p, "grad_accum", None)) if g is not None]
        # not their storages: those of two biases are parts of one, in which the keys have none
        return sum(g.nbytes for g in made) + _bytes(getattr(optimizer, "fp32_groups_gradients_flat", []))

    whole: list[int] = []
    reduce = inner.allreduce_gradients

    def measured_reduce(*args: Any, **kwargs: Any) -> Any:
        whole.append(gradients())
        return reduce(*args, **kwargs)

    inner.allreduce_gradients = measured_reduce
    offloaded = getattr(optimizer, "cpu_offload", False)
    state = [tensor for kinds in inner.basic_optimizer.state.values() for tensor in kinds.values()]
    masters = [shard for group in inner.basic_optimizer.param_groups for shard in group["params"]]
    host = [shard.grad for shard in masters] if offloaded else []
    if offloaded:
        host += [*optimizer.param_buffer_of_bit16_for_cpu_offload_groups, optimizer.temp_grad_buffer_for_cpu_offload]
    sent: Counter[str] = Counter()
    with _counted(sent):
        for part in range(case.accumulation):
            images = {key: random_images(key, num, 32, seed=10 * rank + part) for key, num in IMAGES.items()}
            with saved_by_autograd(model) as saved:
                loss = engine.forward(Batch(images)).loss
            engine.backward(loss)
            if engine.is_boundary:
                held = [g for group in getattr(optimizer, "averaged_gradients", {}).values() or [] for g in group or []]
                last = _bytes(held) if held else gradients()
            engine.step()
    found = Found(_bytes(parameters), _bytes(state + masters), _bytes(host), whole[-1], last, saved.bytes, sent)
    engine.close()
    return found


def _run_all(wanted: list[Case]) -> dict[Case, Found]:
    return {case: _run(case) for case in wanted}


def _assert_as_planned(case: Case, ranks: list[Found]) -> None:
    setting = case.setting(len(ranks))
    buffers = flat_buffers(local_parameters(MODEL, case.ep, decays), len(ranks), case.ep)
    assert any(buffer.padded > buffer.numel for buffer in buffers) or len(ranks) == 1, "padding is not tested"
    for rank, found in enumerate(ranks):
        assert found.weights == sum(buffer.padded for buffer in buffers) * setting.item_bytes, (case, rank)
        assert found.optimiser == optimiser_state(setting, buffers), (case, rank)
        if case.engine == "zero1":
            assert found.whole_gradients == whole_gradients(setting, buffers), (case, rank)
        assert found.step_gradients == step_gradients(setting, buffers, rank), (case, rank)
        assert found.host == (host_buffers(setting, buffers) if setting.engine.offload else 0), (case, rank)
    kept = activations(MODEL, IMAGES, setting.item_bytes, case.ep)
    terms = Counter(getattr(kept, case.recompute))
    del terms["one block, recomputed"]
    # rows arrive where the routing sends them: of all ranks together there are as many as planned
    saved = sum(found.activations for found in ranks) / len(ranks)
    assert saved == pytest.approx(terms.total(), rel=0.1), (case, terms)
    planned: Counter[str] = Counter()
    for collective in collectives(MODEL, setting, buffers):
        planned[collective.name if collective.name == "counts of rows" else collective.operation] += collective.bytes
    names = {
        "all-to-all": "all_to_all_single",
        "all-reduce": "all_reduce",
        "all-gather": "all_gather_into_tensor",
        "counts of rows": "counts of rows",
    }
    for operation, name in names.items():
        sent = sum(found.exchanged[name] for found in ranks)
        assert sent == len(ranks) * planned[operation], (case, operation, sent / len(ranks), planned[operation])


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_hold_and_send_what_is_planned(world):
    wanted = cases(world)
    answers = run_ranks(_run_all, world, wanted, timeout=240)
    for case in wanted:
        _assert_as_planned(case, [rank[case] for rank in answers])
