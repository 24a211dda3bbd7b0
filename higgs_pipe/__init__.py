"""From recordings with transcripts to a LoRA adapter for Higgs Audio v2 or Higgs TTS 3.

One module per stage (``validate``, ``tokenize_audio``, ``pack``, ``train``, ``evaluate``,
``package``, ``report``), each a function from files to files that a Snakemake rule calls.
"""

__version__ = "0.1.0"
