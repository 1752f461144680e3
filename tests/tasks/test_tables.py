"""Text files are looked through before they are read: what is wrong, at which byte and line."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from tasks import tables
from tasks.errors import DataError


def refused(path: Path, **options: str) -> str:
    with pytest.raises(DataError) as error:
        tables.read_csv(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("shift", range(4))
def test_a_character_across_two_blocks_is_whole_and_a_bad_one_is_counted(
    tmp_path, monkeypatch, shift
):
    monkeypatch.setattr(tables, "BLOCK", 16)
    good = ("x" * shift + "😀猫é\n" * 20).encode()
    (tmp_path / "a.csv").write_bytes(good)
    tables.check_text(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(good + b"\xff\n" + good)
    assert f"is not UTF-8 at byte {len(good)} (line 21)" in refused(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(good + b"ab\0" + good)
    assert f"NUL character at byte {len(good) + 2}" in refused(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(good + "é".encode()[:1])
    assert f"is not UTF-8 at byte {len(good)} (line 21)" in refused(tmp_path / "a.csv")


def test_a_mark_of_utf8_is_passed_over_and_counted(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa,b\n1,2\n")
    assert tables.read_csv(tmp_path / "a.csv").columns.tolist() == ["a", "b"]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa,b\n1,\xe9\n")
    assert "at byte 9 (line 2)" in refused(tmp_path / "a.csv")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "cp1252", "gb18030"])
def test_another_encoding_is_read_where_it_is_named(tmp_path, encoding):
    text = "a,b\nTür,1\n" if encoding != "gb18030" else "a,b\n电影,1\n"
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    table = tables.read_csv(tmp_path / "a.csv", encoding)
    assert table["a"].tolist() == [text.split("\n")[1].split(",")[0]]
    assert "is not UTF-8 at byte" in refused(tmp_path / "a.csv", otherwise="say which")


def test_a_missing_mark_of_byte_order_is_told(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\na,x\nb,y\n")
    told = refused(tmp_path / "a.csv", encoding="utf-16", otherwise="set it to what it is")
    assert told.startswith("a.csv is not UTF-16 (UTF-16 stream does not start with BOM): set it to")
    assert told.endswith("what it is; where only that is missing, to UTF-16-LE or UTF-16-BE")
    assert "a.csv is not PUNYCODE (" in refused(tmp_path / "a.csv", encoding="punycode")


def test_a_binary_file_is_told_as_such(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)))
    assert refused(tmp_path / "a.csv") == ("a.csv has a NUL character at byte 8: it is no text")


def test_a_file_without_lines_is_refused_in_little_memory(tmp_path):
    with (tmp_path / "a.csv").open("w") as file:
        file.write("text,label\n")
        for _ in range(100):
            file.write("x" * 1_000_000)
    tracemalloc.start()
    told = refused(tmp_path / "a.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told.startswith("a.csv, line 2 has more than 16777216 characters")
    assert peak < 10_000_000


def test_cells_that_the_header_does_not_name_are_not_dropped(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nwell, no,bad\nfine,good\n")
    assert "has more cells in a row than in its header: a cell with" in refused(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("text,label\nfine,good\nwell, no,bad\n")
    assert "Expected 2 fields in line 3, saw 3; a cell with" in refused(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("text,label\nfine,good,\nbad,bad,\n")  # a comma at each end
    assert tables.read_csv(tmp_path / "a.csv")["label"].tolist() == ["good", "bad"]


@pytest.mark.parametrize("opening", ['"unfinished quote', '"unfinished quote, again'])
def test_rows_between_two_stray_quotes_are_not_swallowed(tmp_path, opening):
    rows = [f"text {number},p" for number in range(400)]
    rows[7], rows[8], rows[297] = '"two\nlines",p', f"{opening},n", '"another one,p'
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    assert refused(tmp_path / "a.csv") == (
        "a.csv: the row that begins in line 11 has a cell whose quote is closed in line 300, and "
        "more of it behind: close it where the cell ends, and write a quote inside a cell twice"
    )


def test_a_name_of_a_column_swallows_no_rows(tmp_path):
    (tmp_path / "a.csv").write_text('label,"text\nn,a\np,b\nn,"c\nx,d\n')
    assert "the row that begins in line 1 has a cell whose quote" in refused(tmp_path / "a.csv")


def test_quotes_of_a_csv_that_are_legal_or_harmless_are_read(tmp_path):
    long = "a line, and\n" * 20_000  # more than csv takes by itself
    cells = ["two\r\nlines", 'a "word", and\n""more""', '5" wide', "", long, "spaced"]
    quoted = [f'"{cell.replace(chr(34), 2 * chr(34))}"' for cell in cells]
    quoted[2] = cells[2]  # not at the begin of a cell, so a character as others are
    rows = [f"{cell},  {cell} ,x" for cell in quoted]
    (tmp_path / "a.csv").write_text("\n".join(["text,more,label", *rows]), newline="")
    table = tables.read_csv(tmp_path / "a.csv").fillna("")
    assert table["text"].tolist() == cells
    assert table["more"].str.strip().tolist() == [cell.strip() for cell in cells]


@pytest.mark.parametrize("end", ["a fine end", 'he "left"', 'and left"'])
def test_quotation_marks_of_a_tsv_that_quote_nothing_are_characters(tmp_path, end):
    rows = ['"Hello there, he said\tpos', "a fine film\tneg", f"{end}\tneg", "last\tpos"]
    (tmp_path / "a.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    found = tables.read_csv(tmp_path / "a.tsv")
    assert ["\t".join(row) for row in found.to_numpy()] == rows


def test_a_cell_of_a_tsv_may_be_quoted(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"a\tb ""c"""\tx\n"two\nlines"\ty\n')
    found = tables.read_csv(tmp_path / "a.tsv")
    assert found.to_numpy().tolist() == [['a\tb "c"', "x"], ["two\nlines", "y"]]


def test_empty_lines_are_passed_over_but_counted(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,x\n\nb,y\n\n")
    found = tables.read_csv(tmp_path / "a.csv")
    assert dict(zip(found.index, found["text"], strict=True)) == {1: "a", 3: "b"}
    (tmp_path / "b.csv").write_text("text\na\n\nb\n")
    found = tables.read_csv(tmp_path / "b.csv")
    assert found["text"].fillna("").tolist() == ["a", "", "b"]


def test_of_two_columns_of_one_name_none_is_taken(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,text,x,x\na,b,c,d,e\n")
    table = tables.read_csv(tmp_path / "a.csv")
    assert tables.column(table, "label", "prepare.label_column", "a.csv").tolist() == ["b"]
    with pytest.raises(DataError, match="has two columns 'text'"):
        tables.column(table, "text", "prepare.text_column", "a.csv")
