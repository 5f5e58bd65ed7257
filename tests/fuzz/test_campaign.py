"""A small sample of the campaign whose figures are in docs/reliability.md."""

from tests.fuzz.campaign import campaign


def test_random_corpora_come_back_and_damaged_files_are_read_or_refused(capsys):
    found = campaign(corpora=120, files=60, seed=1)
    assert found["read"] + found["refused"] == 60
    assert found["kinds of files"] > 15
