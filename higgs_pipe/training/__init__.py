"""Training, the same for every family: steps, optimizer, processes, checkpoints, metrics."""
