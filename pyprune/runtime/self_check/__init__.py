"""`pyprune doctor --gpu`: the GPU kernels' check of themselves on the machine at hand, in at most 90 seconds.

recorded  a recorded decode step with nothing left out, and under device masks
schedule  what is checked, the most important first
child     the process that does it, which a bad memory access may end
run       starts those processes, keeps the time and gives the verdict
"""
