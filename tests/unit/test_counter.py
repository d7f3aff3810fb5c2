"""Counter-based randomness: reproducible anywhere, and random enough."""

import subprocess
import sys

import pytest
import torch

from ringmoe import counter


def test_keys_are_stable_across_processes_and_tell_parts_apart():
    code = "from ringmoe import counter; print(counter.key('a', 1, 'b'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == counter.key("a", 1, "b")
    assert len({counter.key("a", 1), counter.key("a1"), counter.key("a", "1"), counter.key(1, "a")}) == 4
    assert 0 <= counter.key("x") < 1 << 63


def test_known_values_do_not_move():
    # the first is SplitMix64's published first output for seed 0, 0xE220A8397B1DCDAF
    # checkpoints resume into the same masks and crops only while these numbers stay
    keys_T = torch.tensor([0, 1, -5], dtype=torch.int64)
    assert counter.mix(keys_T, 0).tolist() == [-2152535657050944081, -7995527694508729151, 1635312068028924514]
    assert counter.key("ringmoe", 7) == 8950725071265201072


def test_a_draw_depends_on_its_own_key_only():
    keys_T = torch.arange(1000, dtype=torch.int64)
    whole = counter.normal(keys_T, 5)
    assert torch.equal(whole[17:18], counter.normal(keys_T[17:18], 5))
    assert torch.equal(counter.uniform(keys_T, 8)[:, :3], counter.uniform(keys_T, 3))


@pytest.mark.parametrize("salt", [0, 12345])
def test_uniform_is_uniform_and_independent(salt):
    u = counter.uniform(counter.mix(torch.arange(200_000, dtype=torch.int64), salt), 2)
    assert u.min() > 0
    assert u.max() < 1
    counts = torch.histc(u, bins=100, min=0, max=1)
    chi_squared = ((counts - 4000) ** 2 / 4000).sum().item()
    assert chi_squared < 160  # 99 degrees of freedom: above 160 with probability 1e-4
    assert abs(torch.corrcoef(u.T)[0, 1].item()) < 0.01
    assert abs(torch.corrcoef(torch.stack((u[:-1, 0], u[1:, 0])))[0, 1].item()) < 0.01


def test_normal_has_the_moments_of_a_standard_normal():
    z = counter.normal(torch.arange(200_000, dtype=torch.int64), 3).double()
    assert z.mean().abs() < 0.01
    assert (z.var() - 1).abs() < 0.01
    assert ((z**4).mean() - 3).abs() < 0.06
    assert z.isfinite().all()
