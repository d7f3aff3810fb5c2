"""Bytes of one rank by kind: what DeepSpeed's ZeRO-1 and ZeRO-2 hold, and what the model needs beside it.

Three ways of summing gradients, which the engine chooses by stage, type and accumulation (DeepSpeed 0.19.8):

* *plain*: in the type of the weights, when that is fp32 or a step is one micro-batch;
* *buffered*: bf16 with accumulation at stage 1: an fp32 buffer of all gradients that is never given back, and beside it
  the bf16 gradients of the micro-batch;
* *sharded*: bf16 with accumulation otherwise: each rank sums its part in fp32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ringmoe import modality
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.plan.activations import FLOAT32, Activations, activations
from ringmoe.plan.parameters import FlatBuffer
from ringmoe.plan.setting import Setting

GradientMode = Literal["plain", "buffered", "sharded"]
FLOAT64 = 8
_MOMENTS = 2
_BUFFERED_BUCKET = 500_000_000  # elements: DeepSpeed reduces whole buffers together until they have more


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one rank's device, and on its host.

    Attributes:
        weights: Flat buffers in the run's type.
        gradients: The most that a backward pass holds of gradients, made and averaged.
        step_gradients: Gradients between the last backward pass and the step.
        optimiser: Masters, moments and step counters; of the lean engine the codes of the moments.
        scales: The scales of these codes.
        activations: What autograd keeps of a micro-batch, as the setting has it.
        activations_kept: The same with nothing recomputed.
        activations_experts: The same with the experts' hidden values recomputed.
        activations_blocks: The same with whole blocks recomputed.
        buckets: What gradients are reduced in.
        workspace: Short-lived tensors of the backward pass and the pixels of a micro-batch, an estimate.
        step_workspace: Short-lived tensors of the optimiser's step.
        host: What lies in the host's memory for this rank.
        host_start: The model in fp32, which is built on the host before the engine takes it; the lean engine has a
            few tensors at a time there.
    """

    weights: int
    gradients: int
    step_gradients: int
    optimiser: int
    activations: int
    activations_kept: int
    activations_experts: int
    activations_blocks: int
    buckets: int
    workspace: int
    step_workspace: int
    host: int
    host_start: int
    scales: int = 0

    @property
    def backward(self) -> int:
        """The most that a backward pass needs: all its kinds as if their largest moments were one."""
        held = self.weights + self.optimiser + self.scales
        return held + self.gradients + self.activations + self.buckets + self.workspace

    @property
    def step(self) -> int:
        """The most that the optimiser's step needs."""
        return self.weights + self.optimiser + self.scales + self.step_gradients + self.step_workspace

    @property
    def host_peak(self) -> int:
        """The most that the host must hold for this rank."""
        return max(self.host, self.host_start)

    @property
    def peak(self) -> int:
        """The most that the device must hold; never too small for what is counted."""
        return max(self.backward, self.step)


def gradient_mode(setting: Setting) -> GradientMode:
    """How the engine sums gradients."""
    if setting.dtype == "fp32" or setting.accumulation == 1:
        return "plain"
    return "buffered" if setting.engine.stage == 1 and not setting.engine.offload else "sharded"


def memory_of(model: RingMoEConfig, setting: Setting, buffers: Sequence[FlatBuffer]) -> Memory:
    """Counts the rank that holds most.

    Args:
        model: The model.
        setting: How it is run.
        buffers: The engine's flat buffers.
    """
    kept = activations(model, setting.images, setting.item_bytes, setting.expert_parallel)
    device_state, host_state = optimiser_state(setting, buffers), 0
    largest = max(max(buffer.sizes) for buffer in buffers)
    buckets = bucket_bytes(setting, buffers)
    if setting.engine.offload:
        host_state, device_state = device_state + host_buffers(setting, buffers), 0
        buckets += largest * setting.item_bytes
    return Memory(
        weights=sum(buffer.padded for buffer in buffers) * setting.item_bytes,
        gradients=backward_gradients(setting, buffers),
        step_gradients=max(step_gradients(setting, buffers, rank) for rank in range(setting.devices)),
        optimiser=device_state,
        activations=kept.total(setting.recompute),
        activations_kept=kept.total("nothing"),
        activations_experts=kept.total("experts"),
        activations_blocks=kept.total("blocks"),
        buckets=buckets,
        workspace=workspace(model, setting, kept),
        step_workspace=step_workspace(setting, buffers),
        host=host_state,
        host_start=sum(buffer.numel for buffer in buffers) * FLOAT32,
    )


def optimiser_state(setting: Setting, buffers: Sequence[FlatBuffer]) -> int:
    """Masters and moments of the rank's part of every buffer in fp32, and one counter of steps for each."""
    return sum(((1 + _MOMENTS) * buffer.part + 1) * FLOAT32 for buffer in buffers)


def whole_gradients(setting: Setting, buffers: Sequence[FlatBuffer]) -> int:
    """Gradients of all parameters of a rank, when the backward pass of a step's last micro-batch ends.

    Stage 2 gives them away while they are made.
    """
    numel = sum(buffer.numel for buffer in buffers)
    mode = gradient_mode(setting)
    if mode == "buffered":
        return sum(buffer.padded for buffer in buffers) * FLOAT32 + numel * setting.item_bytes
    if setting.engine.stage == 2:
        return 0
    return numel * (FLOAT32 if mode == "sharded" else setting.item_bytes)


def step_gradients(setting: Setting, buffers: Sequence[FlatBuffer], rank: int) -> int:
    """Gradients that a rank holds between the last backward pass of a step and the step.

    Args:
        setting: How the model is run.
        buffers: The engine's flat buffers.
        rank: Which rank.
    """
    mode = gradient_mode(setting)
    if mode == "buffered":
        return whole_gradients(setting, buffers)
    if mode == "sharded":
        return sum(buffer.part for buffer in buffers) * FLOAT32
    if setting.engine.offload:
        return 0  # they went to the host one by one
    return _averaged(setting, buffers, rank) * setting.item_bytes


def backward_gradients(setting: Setting, buffers: Sequence[FlatBuffer]) -> int:
    """The most of any rank while it makes and averages gradients: whole ones, and what is averaged beside them."""
    whole = whole_gradients(setting, buffers)
    if gradient_mode(setting) == "buffered":
        return whole
    averaged = max(step_gradients(setting, buffers, rank) for rank in range(setting.devices))
    # fp32 at stage 2: the averaged gradients of a micro-batch are added to those of the ones before
    adds = setting.engine.stage == 2 and setting.dtype == "fp32" and setting.accumulation > 1
    return whole + averaged * (2 if adds else 1)


def bucket_bytes(setting: Setting, buffers: Sequence[FlatBuffer]) -> int:
    """The bucket that gradients are gathered in, and the copy of it that is sent.

    A parameter that is larger than the bucket is copied whole instead.
    """
    if gradient_mode(setting) == "buffered":
        # copies of whole fp32 buffers, and of these in the type that is sent
        return _buffered_copies(buffers) * (FLOAT32 + setting.item_bytes)
    sums_whole = setting.engine.stage == 1 and gradient_mode(setting) == "sharded"
    in_bucket = FLOAT32 if sums_whole else setting.item_bytes
    sent_as = 0 if in_bucket == setting.item_bytes else setting.item_bytes
    bucket = setting.engine.reduce_bucket
    largest = max(max(buffer.sizes) for buffer in buffers)
    numel = sum(buffer.numel for buffer in buffers)
    copied = max(min(bucket, numel), largest if largest > bucket else 0)
    return bucket * in_bucket + copied * (in_bucket + sent_as)


def step_workspace(setting: Setting, buffers: Sequence[FlatBuffer]) -> int:
    """The larger of one gradient in fp64, for the norm, and one buffer's gradients as the optimiser takes them."""
    part = max(buffer.part for buffer in buffers)
    norm = min(max(max(buffer.sizes) for buffer in buffers), part) * FLOAT64
    if setting.engine.offload or gradient_mode(setting) != "plain":
        return norm
    flat = part * setting.item_bytes
    return max(norm, flat + (part * FLOAT32 if setting.dtype == "bf16" else 0))


def host_buffers(setting: Setting, buffers: Sequence[FlatBuffer]) -> int:
    """Beside the state: its gradients in fp32, new weights in the run's type, and the largest parameter's gradient.

    In fp32 with accumulation the host also sums the gradients of the parameters in its part.
    """
    part = sum(buffer.part for buffer in buffers)
    largest = max(max(buffer.sizes) for buffer in buffers)
    sums = 0
    if gradient_mode(setting) == "plain" and setting.accumulation > 1:
        sums = max(_averaged(setting, buffers, rank) for rank in range(setting.devices))
    return part * (FLOAT32 + setting.item_bytes) + (largest + sums) * setting.item_bytes


def _averaged(setting: Setting, buffers: Sequence[FlatBuffer], rank: int) -> int:
    """Elements of the parameters, whole, of which a rank steps at least a part."""
    place = {False: rank, True: rank // setting.expert_parallel}
    return sum(buffer.reduced(place[buffer.spread]) for buffer in buffers)


def _buffered_copies(buffers: Sequence[FlatBuffer]) -> int:
    """Elements of the largest set of buffers that are reduced together."""
    largest = 0
    for spread in (False, True):
        together = 0
        for buffer in buffers:
            if buffer.spread != spread:
                continue
            together += buffer.padded
            largest = max(largest, together)
            if together > _BUFFERED_BUCKET:
                together = 0
    return largest


def workspace(model: RingMoEConfig, setting: Setting, kept: Activations) -> int:
    """Short-lived gradients of one block, and the pixels of a micro-batch with their masks."""
    values = sum(num * modality.get(key).num_channels for key, num in setting.images.items())
    return kept.transient + (values * FLOAT32 + setting.micro_batch) * model.image_size**2
