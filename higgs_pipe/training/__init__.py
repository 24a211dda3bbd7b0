"""Parts that would train any model: step inputs, optimizer, processes, checkpoints, metrics."""
