"""The package in which an adapter is published: files, model card, provenance, verification."""
