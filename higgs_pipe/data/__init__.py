"""Parts for any speech corpus: manifests, audio files, tables, splits and packing."""
