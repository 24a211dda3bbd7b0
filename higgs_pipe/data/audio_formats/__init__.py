"""Formats of audio files, as far as libsndfile does not do: :mod:`higgs_pipe.data.audio` reads all.

``completeness`` tells whether a file holds what it declares, by its ``chunks`` or by the streams of
``flac``, ``mp3`` and ``ogg``; ``repairs`` fills in what a header leaves out. ``ffmpeg`` decodes the
containers that libsndfile lacks.
"""
