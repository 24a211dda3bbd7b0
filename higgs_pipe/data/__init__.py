"""What the stages share about data: manifests, audio files, tables and splits."""
