"""Benchmarks: paired, interleaved, in one run. `make bench`, or `python -m pytest bench --benchmark-enable`."""
