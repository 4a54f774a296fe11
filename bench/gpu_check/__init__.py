"""Scripts that prove and time the GPU paths on a machine that has a GPU: `python -m bench.gpu_check correct --out DIR`.

Everything is said in DIR/gpu_check.json, rewritten whole after each part; a short table is printed last.
"""
