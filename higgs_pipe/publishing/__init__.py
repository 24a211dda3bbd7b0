"""The package that an adapter is given away as: its files, model card, provenance and check."""
