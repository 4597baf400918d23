from parp_cli.data.utterances import normalize_text, parse_phones


def test_text_is_upper_case_with_single_spaces():
    assert normalize_text("  it's\ta  \n Test ") == "IT'S A TEST"


def test_phones_are_words_of_symbols():
    assert parse_phones("M AA0 R K | IH0 Z") == (("M", "AA0", "R", "K"), ("IH0", "Z"))
    assert parse_phones(" A|| B ") == (("A",), ("B",))
    assert parse_phones("  ") == ()
