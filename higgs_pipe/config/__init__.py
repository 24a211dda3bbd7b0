"""The settings: every key, what each stage reads of them, and the schema of both."""
