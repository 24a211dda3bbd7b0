"""Bounds on the contents of a user's files, each with its reason and an error message.

They are far above the needs of a speech corpus and below what would fill a machine's memory.
Lengths and rates of recordings are settings: ``validate.max_clip_seconds`` and
``validate.max_sample_rate_hz``.
"""

MIB = 2**20

# A manifest as text, unpacked: three million rows of 350 bytes. It is read whole, and takes some
# four times its size.
MAX_MANIFEST_BYTES = 1024 * MIB
# A line of it. A row with a conversation of an hour has some 100 kB.
MAX_LINE_BYTES = 16 * MIB
# A JSON array in one file: its values take up to twenty times its bytes, all at once.
MAX_JSON_BYTES = 128 * MIB
# A text: two hours of speech. A tokenizer takes some 100 bytes a character.
MAX_TEXT_CHARS = 100_000
# A file with the transcript of one recording: such a text, in four bytes a character.
MAX_TRANSCRIPT_BYTES = 4 * MAX_TEXT_CHARS
# Keys of a JSON object, columns of a table, fields of a line.
MAX_KEYS = 1_000
# Rows of all manifests: their ids, paths and texts take about 0.6 kB each while they are checked.
MAX_ROWS = 50_000_000
# A Parquet table of one value a column holds millions of rows in no bytes, so that it passes for
# small. Rows of recordings have a path each.
MIN_PARQUET_BYTES_PER_ROW = 1
MIN_ROWS_TO_DOUBT = 1_000_000
# Bytes of a Parquet column between two row groups, unpacked; recordings in a table have no bound.
MAX_COLUMN_BYTES = 1024 * MIB
# Faults of manifests: after so many, what follows is noise of the first.
MAX_FAULTS = 10_000
# Names of unknown keys that are remembered.
MAX_IGNORED_KEYS = 100
# Samples of all channels of one segment, decoded: 1 GiB. 255 channels of silence are a few bytes
# in a file.
MAX_SEGMENT_SAMPLES = 2**28
# A recording that FFmpeg decodes as a whole, to disk: a day of 48,000 Hz.
MAX_DECODED_BYTES = 2**34

# A config: the shipped one has 20 kB, some 150 values and four levels. Aliases of YAML multiply.
MAX_CONFIG_BYTES = MIB
MAX_CONFIG_VALUES = 100_000
MAX_CONFIG_DEPTH = 20
# The small files of a checkpoint: Llama's tokenizer has 17 MB.
MAX_CHECKPOINT_JSON_BYTES = 256 * MIB
