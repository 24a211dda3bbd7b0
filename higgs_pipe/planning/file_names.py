"""File names that both the rules and the stages must know."""

# A Kaldi data folder.
WAV_SCP, KALDI_TEXT, UTT2SPK, SEGMENTS = "wav.scp", "text", "utt2spk", "segments"
UTT2DUR = "utt2dur"
# A Hugging Face audiofolder.
METADATA_JSONL, METADATA_CSV = "metadata.jsonl", "metadata.csv"
# An older trainer's folder of samples.
METADATA_JSON = "metadata.json"
METADATA = frozenset({METADATA_CSV, METADATA_JSON, METADATA_JSONL})
# What a folder that is a manifest may hold, beside transcripts.
MANIFESTS_IN_FOLDER = (
    WAV_SCP,
    KALDI_TEXT,
    UTT2SPK,
    SEGMENTS,
    UTT2DUR,
    METADATA_JSON,
    METADATA_JSONL,
    METADATA_CSV,
)

# Recordings, of one name the first in this order is taken, and the transcripts beside them.
AUDIO_ENDINGS = (
    ".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".w64", ".caf",
    ".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".aac", ".webm", ".mka", ".mkv", ".wma", ".amr",
    ".sph", ".oga", ".wv",
)  # fmt: skip
# LibriSpeech's: a line per recording of the folder, its name and what is said.
TRANSCRIPTS_ENDING = ".trans.txt"
TRANSCRIPT_ENDINGS = (".txt", ".lab", ".normalized.txt", ".original.txt")

# The last file of a package or full checkpoint.
CHECKSUMS = "SHA256SUMS"


def shard_name(index: int) -> str:
    """Return ``shard-00000`` for the first shard."""
    return f"shard-{index:05d}"


def shard_names(num_shards: int) -> list[str]:
    """Return ``shard-00000``, ``shard-00001``, ..."""
    return [shard_name(index) for index in range(num_shards)]
