"""Transcripts cleaned as the inference of Higgs Audio cleans its text."""

LATIN_PUNCTUATION = str.maketrans(
    {
        "，": ", ",
        "。": ". ",
        "、": ", ",
        "：": ": ",
        "；": "; ",
        "？": "? ",
        "！": "! ",
        "（": " ",
        "）": " ",
        "(": " ",
        ")": " ",
        "【": "[",
        "】": "]",
        "《": "'",
        "》": "'",
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
        "—": "-",
        "…": "...",
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
    """Clean a transcript as Higgs Audio's inference cleans its text.

    Chinese punctuation becomes Latin, parentheses become spaces, degrees are spelled out, sound
    events become tags, white space is folded, and a text that ends bare gets a full stop.
    """
    if not text.isascii() or "(" in text or ")" in text:
        text = text.translate(LATIN_PUNCTUATION)
    if "[" in text or "°" in text:
        for written, spoken in SPELLED_OUT.items():
            text = text.replace(written, spoken)
    lines = (" ".join(line.split()) for line in text.splitlines())
    text = "\n".join(line for line in lines if line)
    return text if text.endswith(SENTENCE_ENDS) else text + "."
