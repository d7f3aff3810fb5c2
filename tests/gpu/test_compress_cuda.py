"""Truncation on a GPU: as near to the optimum as on the CPU."""

import pytest
import torch

from ringmoe.compress import kc

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("shape", [(256, 1024), (1024, 256)])
@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_truncation_on_a_gpu_is_as_good(shape, power):
    small = min(shape)
    left, right = (torch.linalg.qr(torch.randn(size, small, dtype=torch.float64))[0] for size in shape)
    values = torch.arange(1, small + 1, dtype=torch.float64) ** -power
    w_DF = ((left * values) @ right.T).float()
    low = kc.truncate(w_DF.cuda(), small // 4)
    assert low.left_DK.is_cuda
    error = torch.linalg.norm(w_DF.double() - low.matrix.cpu().double()).item()
    assert error <= 1.001 * values[small // 4 :].square().sum().sqrt().item()
