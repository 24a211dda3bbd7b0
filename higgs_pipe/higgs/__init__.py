"""Everything particular to Higgs Audio v2: codes, prompts, batches, the model and its loss."""
