"""Cleaning of target texts, as in the inference code of Higgs Audio v2.

The marks and their order are those of ``examples/generation.py`` in boson-ai/higgs-audio. Only the
text to be spoken is cleaned: transcripts of references and scenes go into a prompt as they are.
"""

LATIN_PUNCTUATION = str.maketrans(
    {
        "，": ", ",  # the only one with a space
        "。": ".",
        "、": ",",
        "：": ":",
        "；": ";",
        "？": "?",
        "！": "!",
        "（": " ",
        "）": " ",
        "(": " ",
        ")": " ",
        "【": "[",
        "】": "]",
        "《": "<",
        "》": ">",
        "“": '"',
        "”": '"',
        "「": '"',
        "」": '"',
        "『": '"',
        "』": '"',
        "‘": "'",
        "’": "'",
        "—": "-",
        "…": "...",
        "·": ".",
    }
)


SPELLED_OUT = {
    "°F": " degrees Fahrenheit",
    "°C": " degrees Celsius",
    "[laugh]": "<SE>[Laughter]</SE>",
    "[humming start]": "<SE_s>[Humming]</SE_s>",
    "[humming end]": "<SE_e>[Humming]</SE_e>",
    "[music start]": "<SE_s>[Music]</SE_s>",
    "[music end]": "<SE_e>[Music]</SE_e>",
    "[music]": "<SE>[Music]</SE>",
    "[sing start]": "<SE_s>[Singing]</SE_s>",
    "[sing end]": "<SE_e>[Singing]</SE_e>",
    "[applause]": "<SE>[Applause]</SE>",
    "[cheering]": "<SE>[Cheering]</SE>",
    "[cough]": "<SE>[Cough]</SE>",
}


SENTENCE_ENDS = (".", "!", "?", ",", ";", '"', "'", "</SE>", "</SE_e>")


def clean_text(text: str) -> str:
    """Clean a target text as Higgs Audio's inference does.

    Chinese punctuation becomes Latin, parentheses become spaces, degrees are spelled out, sound
    events become tags, white space is folded line by line, empty lines are dropped, and a text
    without a final mark gets a full stop.
    """
    text = text.translate(LATIN_PUNCTUATION)
    if "[" in text or "°" in text:
        for written, spoken in SPELLED_OUT.items():
            text = text.replace(written, spoken)
    lines = (" ".join(line.split()) for line in text.split("\n"))
    text = "\n".join(line for line in lines if line)
    return text if text.endswith(SENTENCE_ENDS) else text + "."
