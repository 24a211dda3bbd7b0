from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from higgs_pipe.data.sentences import split_text, spoken_length


def test_short_text_stays_whole() -> None:
    assert split_text("One. Two.", 100) == ["One. Two."]


def test_long_text_is_split_after_sentences_into_as_few_pieces_as_possible() -> None:
    text = "It is 3.14 today. Is it? Yes!  He said: “No.” The end"
    assert split_text(text, 25) == ["It is 3.14 today. Is it?", "Yes!  He said: “No.”", "The end"]


def test_a_long_sentence_is_split_after_a_clause_then_a_word_then_anywhere() -> None:
    assert split_text("a long start, then the end", 20) == ["a long start,", "then the end"]
    assert split_text("words without any comma", 13) == ["words without", "any comma"]
    assert split_text("abcdefghij", 4) == ["abcd", "efgh", "ij"]


def test_chinese_is_split_without_spaces_and_counts_as_longer() -> None:
    text = "今天天气很好。我们出去走走吧！好的。"
    assert spoken_length("好的") == 8
    assert split_text(text, 40) == ["今天天气很好。", "我们出去走走吧！", "好的。"]


def test_full_width_letters_count_as_wide_and_control_tokens_as_a_space() -> None:
    assert spoken_length("Ａb") == 5
    assert spoken_length("a<|laugh|>b") == 3


def test_a_control_token_is_not_cut_but_text_may_be_cut_beside_it() -> None:
    assert split_text("aaaa<|x y|>bbbb", 5) == ["aaaa<|x y|>", "bbbb"]
    assert split_text("aaaa <|b c d|> eeee", 4) == ["aaaa", "<|b c d|>", "eeee"]


@given(st.text(alphabet='ab .,!?。，好\n[]"', max_size=200), st.integers(4, 60))
def test_splitting_loses_only_white_space_and_no_piece_is_too_long(
    text: Any, max_length: Any
) -> None:
    pieces = split_text(text, max_length)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < spoken_length(piece) <= max_length for piece in pieces)
