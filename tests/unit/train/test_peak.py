"""The rate that utilisation is measured by."""

import time

import torch

from ringmoe.train.peak import measure_peak


def test_the_peak_is_the_rate_of_a_large_product():
    a_NN = torch.ones(1024, 1024)
    rates = []
    for _ in range(5):
        began = time.perf_counter()
        a_NN @ a_NN
        rates.append(2 * 1024**3 / (time.perf_counter() - began))
    peak = measure_peak(torch.device("cpu"), torch.float32)
    assert 0.25 * max(rates) < peak.flops_per_second < 4 * max(rates)
    assert "TFLOP/s in a product of 1024 x 1024 matrices, float32, CPU, " in peak.what
