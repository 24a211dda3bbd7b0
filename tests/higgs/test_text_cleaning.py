"""Texts cleaned by hand, mark by mark, as the original's inference cleans them."""

import pytest

from higgs_pipe.higgs.v2.text_cleaning import clean_text

BY_HAND = {
    "a，b": "a, b.",
    "a。b": "a.b.",
    "a、b": "a,b.",
    "a：b": "a:b.",
    "a；b": "a;b.",
    "a？b": "a?b.",
    "a！b": "a!b.",
    "a（b）c": "a b c.",
    "a(b)c": "a b c.",
    "a【b】c": "a[b]c.",
    "a《b》c": "a<b>c.",
    "a“b”c": 'a"b"c.',
    "a「b」c": 'a"b"c.',
    "a『b』c": 'a"b"c.',
    "a‘b’c": "a'b'c.",
    "a—b": "a-b.",
    "a…b": "a...b.",
    "a·b": "a.b.",
    "20°C": "20 degrees Celsius.",
    "68°F!": "68 degrees Fahrenheit!",
    "Ha [laugh]": "Ha <SE>[Laughter]</SE>",
    "【laugh】 Ha": "<SE>[Laughter]</SE> Ha.",
    "[music start] la [music end]": "<SE_s>[Music]</SE_s> la <SE_e>[Music]</SE_e>",
    "[sing start] la": "<SE_s>[Singing]</SE_s> la.",
    "Ends [music start]": "Ends <SE_s>[Music]</SE_s>.",
    "你好，世界。": "你好, 世界.",
    "真的吗？不，不！": "真的吗?不, 不!",
    "  two   spaces\n\n \n next\tone ": "two spaces\nnext one.",
    "a\r\nb\rc\u2028d": "a\nb c d.",
    "Really?": "Really?",
    "He said “no”": 'He said "no"',
    "One,": "One,",
    "Two;": "Two;",
    "Three:": "Three:.",
    "Four…": "Four...",
    "Five —": "Five -.",
    "(Six)": "Six.",
    "[SPEAKER0] Hi: there\n[SPEAKER1] Yes": "[SPEAKER0] Hi: there\n[SPEAKER1] Yes.",
}


@pytest.mark.parametrize("written", BY_HAND)
def test_target_text_is_cleaned_as_at_inference(written: str) -> None:
    assert clean_text(written) == BY_HAND[written]
