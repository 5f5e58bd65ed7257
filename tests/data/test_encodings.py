"""Text in other encodings than UTF-8."""

import json

import pytest

from slm.data.sources import open_source
from tests.data.conftest import read, refusal


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("gb18030", "从前有一只猫。"), ("cp1252", "Il était une fois, “dit-il”"), ("latin-1", "Ærø"),
        ("utf-16", "Once 猫"), ("utf-16-le", "Once 猫"), ("UTF_32", "é"), ("shift_jis", "むかしむかし"),
    ],
)  # fmt: skip
def test_an_encoding_is_read_in_every_format(tmp_path, encoding, text):
    (tmp_path / "a.txt").write_bytes(f"{text}\r\n<|endoftext|>two".encode(encoding))
    assert read(tmp_path / "a.txt", encoding=encoding) == [text, "two"]
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"text": text}, ensure_ascii=False).encode(encoding))
    assert read(tmp_path / "a.jsonl", encoding=encoding) == [text]
    (tmp_path / "a.csv").write_bytes(f'text\n"{text}"\n'.encode(encoding))
    assert read(tmp_path / "a.csv", encoding=encoding) == [text]


def test_the_encoding_is_in_the_fingerprint_unless_it_is_utf_8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abc")
    plain = open_source(str(path)).fingerprint
    assert open_source(str(path), encoding="UTF8").fingerprint == plain
    assert open_source(str(path), encoding="cp1252").fingerprint != plain


@pytest.mark.parametrize(
    ("name", "said"),
    [("cp12522", "cp1252"), ("gb1830", "gb18030"), ("x", "like utf-16"), ("hex", "like"), ("\0", "like")],
)
def test_an_unknown_encoding_is_refused_with_a_suggestion(tmp_path, name, said):
    (tmp_path / "a.txt").write_text("abc")
    assert said in refusal(tmp_path / "a.txt", encoding=name)


def test_text_that_is_not_utf_8_is_told_its_likely_encoding(tmp_path):
    pytest.importorskip("charset_normalizer")
    (tmp_path / "a.txt").write_bytes(("从前有一只小猫，它住在山里。" * 50).encode("gb18030"))
    assert "it looks like gb18030: pass --encoding gb18030, save it as UTF-8" in refusal(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("encoding", "text", "said"),
    [
        ("cp1252", "Die Mädchen hören schöne Vögel über den Dächern und grüßen den Müller.", "cp1252"),
        ("cp1252", "O menino não sabia que a irmã já tinha saído. Então ele pôs.", "cp1252 (não) or cp1250 (năo)"),
        ("cp1250", "Malá holčička šla do lesa a uviděla lišku.", "cp1252 (holèièka) or cp1250 (holčička)"),
        ("cp1251", "Маленькая девочка пошла в лес и увидела лису. Жёлтый лист упал на дорогу.", "cp1251"),
    ],
)  # fmt: skip
def test_a_guess_that_could_be_another_shows_a_word_of_each(tmp_path, encoding, text, said):
    pytest.importorskip("charset_normalizer")
    (tmp_path / "a.txt").write_bytes((text * 5).encode(encoding))
    pass_it = "the --encoding that reads right" if " or " in said else f"--encoding {said}"
    assert f"it looks like {said}: pass {pass_it}, save it as UTF-8" in refusal(tmp_path / "a.txt")
