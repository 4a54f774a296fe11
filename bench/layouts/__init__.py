"""Times layouts and constants of the CUDA library's kernel on the GPU at hand: `python -m bench.layouts`."""
