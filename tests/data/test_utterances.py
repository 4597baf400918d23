from parp_cli.data.utterances import parse_phones


def test_phones_are_words_of_symbols():
    assert parse_phones("M AA0 R K | IH0 Z") == (("M", "AA0", "R", "K"), ("IH0", "Z"))
    assert parse_phones(" A|| B ") == (("A",), ("B",))
    assert parse_phones("  ") == ()
