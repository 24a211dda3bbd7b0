"""Time that compiled layers cost and save, as measured on one H200."""

# docs/performance.md: 90 s for the first compilation of the 3B model; on one H200 a position takes
# 41 us without compiled layers and 25 us with them.
COLD_SECONDS = 90.0
WARM_SECONDS = 15.0
SAVED_SECONDS_PER_POSITION = 16e-6
H200_FLOPS = 790e12  # of a large bfloat16 matrix product
FORWARD_SHARE = 1 / 3  # of a training step's work, where nothing is learnt
