"""Marks in the texts of Higgs Audio v2: speakers and sound events."""

import re

from higgs_pipe.higgs.v2.text_cleaning import SPELLED_OUT

NAME = "Higgs Audio v2"
SOUNDS = "|".join(re.escape(mark) for mark in SPELLED_OUT if mark.startswith("["))
SPEAKER_MARK = re.compile(r"\[SPEAKER\d+\]")
MARKS = re.compile(rf"{SPEAKER_MARK.pattern}|<SE(?:_[se])?>\[[^\[\]]*\]</SE(?:_[se])?>|{SOUNDS}")
