"""The settings: every key, the part of each stage, their schema and reference page."""
