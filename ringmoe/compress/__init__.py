"""Compression (Section 3.4, App. B.4): score (usage), plan, apply, save, each a step of its own and a file of its own.

``ep``, ``ks``, ``ka`` and ``kc`` are the paper's modes as pure functions; the plan is arithmetic on configs and is
shown before anything is written; the result is an ordinary checkpoint of a smaller config.
"""
