"""The machine: who started this process, which ranks do what together, and the engine that takes the steps.

Only ``engine`` imports DeepSpeed, only ``mpi`` imports mpi4py and only ``recompute`` imports fairscale; everything else
here needs torch alone.
"""
