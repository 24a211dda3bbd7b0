"""The settings: every key, the part that each stage reads, the schema and the reference page."""
