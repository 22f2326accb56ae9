"""Benchmarks, one module each: ``BASELINE``, ``COLUMNS`` and ``run(settings)``; ``scripts/bench.py`` starts them."""
