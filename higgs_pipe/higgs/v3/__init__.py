"""Parts specific to Higgs TTS 3, also known as Higgs Audio v3 (``higgs-tts-3-4b``)."""
