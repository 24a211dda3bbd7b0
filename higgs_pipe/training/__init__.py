"""Training parts not specific to Higgs: step inputs, optimizer, processes, checkpoints, metrics."""
