"""Tables of examples, CSV, TSV or Parquet, and the columns of them that all problems read.

A table's index numbers what is in it for people, from 1; its name says what is counted: the rows
after the header, or the lines of a file. `attrs[NAMES]` holds the names of all columns of the
file, also of those that were not read.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import labelling
from tasks.errors import DataError, nearest
from tasks.params import PrepareParams
from tasks.records import COLUMN

NAMES = "names"
_LISTS = (list, tuple, np.ndarray)  # of the labels of one example
_FLOATS: tuple[type[Any], ...] = (float, np.floating)
EXACT = 2**53  # from here on, whole floats differ by more than 1
BLOCK = 1 << 20  # bytes of a text file in memory at once
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # how a text in UTF-16 begins
LONGEST = 16 << 20  # characters of a line; a file without lines would fill the memory
AS_UTF8 = "save it as UTF-8"
LARGEST = 2**31 - 1  # characters of a cell; csv's own limit is shorter than some texts
SPACED = re.compile(r'" +(?=[,\r\n]|$)')  # which pandas takes for a closing quote too
QUOTED = "a cell with a separator, a quote or a line break inside stands in double quotes"
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def examples(table: pd.DataFrame, params: PrepareParams, name: str) -> pd.DataFrame:
    """`label`, `split`, `group`, and those of `params.columns` after `COLUMN`; `table`'s index.

    Several labels of an example become one text (`tasks.labelling`). `name`: of the table, for
    messages. Raises `DataError` for a missing column, label, or split.
    """
    labels = column(table, params.label_column, "prepare.label_column", name)
    frame = pd.DataFrame({"label": _labels(labels, params, name)})
    frame["split"] = _splits(_optional(table, "split_column", params, name), name)
    frame["group"] = text(_optional(table, "group_column", params, name))
    for own in params.columns:
        frame[COLUMN + own] = _values(column(table, own, "prepare.columns", name))
    return frame


def column(table: pd.DataFrame, wanted: str, key: str, name: str) -> pd.Series[Any]:
    """A column; `DataError` names the nearest ones where it is missing, or there twice.

    `key`: of the parameter that asks for it.
    """
    columns = [str(c) for c in table.attrs.get(NAMES, table.columns)]
    if columns.count(wanted) > 1:
        raise DataError(f"{name} has two columns {wanted!r} ({key}): rename or remove one")
    if wanted in columns and wanted in table:
        return table[wanted]
    folded = [c for c in columns if c.strip().lower() == wanted.lower()]
    hint = f": did you mean {folded[0]!r}?" if folded else nearest(wanted, columns)
    listed = ", ".join(repr(c) for c in columns[:20])
    raise DataError(f"{name} has no column {wanted!r} ({key}); it has {listed}{hint}")


def text(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column as stripped text; empty is missing; whole floats lose their `.0`."""
    if pd.api.types.is_float_dtype(column):
        whole = column.dropna()
        if (whole == whole.round()).all() and (whole.abs() < EXACT).all():
            column = column.astype("Int64")
    elif column.dtype == object:  # of several kinds: 1.0 and "1" are one
        column = column.map(_plain)
    text = column.astype("str").where(column.notna())
    text = text.str.strip()
    return text.where(text != "").astype("str")


def first(mask: pd.Series[Any]) -> str | None:
    """The first marked row as people count it, such as `row 3`."""
    return (
        f"{mask.index.name} {mask.index[int(np.argmax(mask.to_numpy()))]}" if mask.any() else None
    )


def numbered(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with rows that are counted from 1, whatever index the file brings."""
    table.index = pd.RangeIndex(1, len(table) + 1, name="row")
    return table


def read_csv(path: Path, encoding: str = "utf-8", otherwise: str = AS_UTF8) -> pd.DataFrame:
    """All cells of a CSV or TSV file as text; an empty one is missing.

    In a TSV file quotation marks quote a cell, as spreadsheets write it, unless a cell would then
    run over tabs and line ends: there they are characters as others are. Empty lines are passed
    over but counted; of a single column they are cells. Raises `DataError` as `check_text`, for
    what is no table, and for a CSV file in which stray quotes hold rows together.
    """
    check_text(path, encoding, otherwise)
    tabs = path.suffix.lower() == ".tsv"

    def parsed(**options: Any) -> pd.DataFrame:
        with path.open(encoding=without_mark(encoding), newline="") as stream:
            return pd.read_csv(
                stream,
                sep="\t" if tabs else ",",
                dtype=str,
                keep_default_na=False,  # a class may be called NA
                na_values=[""],
                index_col=False,
                skipinitialspace=True,
                skip_blank_lines=False,
                **options,
            )

    def whole() -> pd.DataFrame:
        if not tabs:
            table = parsed()
            if _has_lines(table):  # else no quote has swallowed a row, and the pass is spared
                _refuse_stray_quotes(path, encoding)
            return table
        plain = {"quoting": csv.QUOTE_NONE}
        try:
            table = parsed()
        except pd.errors.ParserError:
            return parsed(**plain)
        return parsed(**plain) if _runs_over(table) else table

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = whole()
        header = parsed(header=None, nrows=1).iloc[0]  # pandas renames the second of two alike
    except pd.errors.ParserWarning:
        raise DataError(
            f"{path.name} has more cells in a row than in its header: {QUOTED}"
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        told = f"{path.name} is not a readable table: {line(error)}"
        quotes = isinstance(error, pd.errors.ParserError)
        raise DataError(f"{told}; {QUOTED}" if quotes else told) from None
    own = zip(header, table.columns, strict=True)
    names = [name if isinstance(name, str) else other for name, other in own]
    table = numbered(table)
    if len(names) > 1:
        table = table.dropna(how="all")
    table.attrs[NAMES] = names
    return table


def _has_lines(table: pd.DataFrame) -> bool:
    """Whether a cell, or a name of a column, has line ends inside."""
    columns = (pd.Series(table.columns, dtype=str), *(table[name] for name in table))
    return any(column.str.contains("[\r\n]").any() for column in columns)


def _refuse_stray_quotes(path: Path, encoding: str) -> None:
    """Refuse a quoted cell that goes on behind its closing quote, which pandas does not mind: a
    stray quote has swallowed the rows up to the next one."""
    limit, first = csv.field_size_limit(LARGEST), 1
    try:
        with path.open(encoding=without_mark(encoding), newline="") as stream:
            lines = (SPACED.sub('"', line) if '" ' in line else line for line in stream)
            rows = csv.reader(lines, skipinitialspace=True, strict=True)
            try:
                for _ in rows:
                    first = rows.line_num + 1
            except csv.Error:
                raise DataError(
                    f"{path.name}: the row that begins in line {first} has a cell whose quote is "
                    f"closed in line {rows.line_num}, and more of it behind: close it where the "
                    "cell ends, and write a quote inside a cell twice"
                ) from None
    finally:
        csv.field_size_limit(limit)


def _runs_over(table: pd.DataFrame) -> bool:
    """Whether a cell has both tabs and line ends inside, which a row that lost its end has."""
    cells = (table[name] for name in table)
    return any((x.str.contains("\t") & x.str.contains("\n")).any() for x in cells)


def check_text(path: Path, encoding: str = "utf-8", otherwise: str = AS_UTF8) -> None:
    """Read a file through once, a block in memory at a time.

    Raises `DataError` with the byte and the line of what `encoding` cannot be, with what to do
    `otherwise`; of a NUL character; and for a line of more than `LONGEST` characters.
    """
    lines, open_line, done = 1, 0, 0
    decoder = codecs.getincrementaldecoder(encoding)()
    with path.open("rb") as file:
        for block in _blocks(file.read):
            try:
                decoded = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                where, good = done + error.start, error.object[: error.start]
                marked = where == 0 and block.startswith(WIDE)
                if b"\0" in block and not marked and not _of_wide_characters(encoding):
                    raise DataError(_nul(path, done + error.object.index(0))) from None
                line_number = lines + good.count(b"\n")
                raise DataError(
                    f"{path.name} is not {encoding.upper()} at byte {where} "
                    f"(line {line_number}): {otherwise}"
                ) from None
            except UnicodeError as error:  # of a codec that says no place
                name = encoding.upper()
                wide = _of_wide_characters(encoding)
                hint = f"; where only that is missing, to {name}-LE or {name}-BE" if wide else ""
                raise DataError(
                    f"{path.name} is not {name} ({line(error)}): {otherwise}{hint}"
                ) from None
            if (place := decoded.find("\0")) >= 0:
                raise DataError(_nul(path, done + len(decoded[:place].encode(encoding))))
            *ended, rest = decoded.split("\n")
            for piece in ended:
                _refuse_long(path, lines, open_line + len(piece))
                lines, open_line = lines + 1, 0
            open_line += len(rest)
            _refuse_long(path, lines, open_line)
            done = file.tell() - len(decoder.getstate()[0])


def without_mark(encoding: str) -> str:
    """The encoding that passes over a mark of UTF-8 at the beginning."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The blocks of a file, and an empty one in the end."""
    while block := read(BLOCK):
        yield block
    yield b""


def _nul(path: Path, byte: int) -> str:
    return f"{path.name} has a NUL character at byte {byte}: it is no text"


def _refuse_long(path: Path, number: int, characters: int) -> None:
    if characters > LONGEST:
        raise DataError(
            f"{path.name}, line {number} has more than {LONGEST} characters: it is no table of "
            "examples, or that line must go"
        )


def _of_wide_characters(encoding: str) -> bool:
    return codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))


def schema(path: Path) -> Any:
    """The schema of a Parquet file. Raises `DataError` where there is none."""
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is not a readable Parquet file: {line(error)}") from None


def read_parquet(path: Path, names: list[str], label_column: str) -> pd.DataFrame:
    """Some columns of a Parquet file; classes get the names that the file keeps for numbers."""
    every = schema(path).names
    try:
        read = pq.read_table(path, columns=list(dict.fromkeys(n for n in every if n in names)))
        read = with_class_names(read, label_column, features(read))
        table = read.to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is not a readable Parquet file: {line(error)}") from None
    table.attrs[NAMES] = every
    return numbered(table)


def features(table: Any) -> Mapping[str, Any]:
    """What Hugging Face says of the columns in the metadata of an Arrow table, or nothing."""
    try:
        return json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}


def with_class_names(table: Any, column: str, features: Mapping[str, Any]) -> Any:
    """An Arrow table with the numbers of classes replaced by the names in `features`."""
    try:
        feature = features[column]
        of_lists = isinstance(feature, list) or "feature" in feature
        if of_lists:  # as `datasets` has written lists
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        names = feature["names"]
        numbers = table.column(column).to_pylist()

        def named(number: int | None) -> str | None:
            return None if number is None or number < 0 else names[number]

        labels = [
            None if n is None else [named(each) for each in n] if of_lists else named(n)
            for n in numbers
        ]
        named_labels = pa.array(labels, pa.list_(pa.string()) if of_lists else pa.string())
    except (KeyError, TypeError, IndexError):  # Arrow's errors of types among them
        return table
    return table.set_column(table.schema.get_field_index(column), column, named_labels)


def line(error: Exception) -> str:
    """The first line of what a library said."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _optional(table: pd.DataFrame, key: str, params: PrepareParams, name: str) -> pd.Series[Any]:
    """A column that may be missing, unless the user named it or it is there under a twin's name."""
    wanted = getattr(params, key)
    asked_for = wanted != PrepareParams.model_fields[key].default
    columns = table.attrs.get(NAMES, table.columns)
    twin = any(str(c).strip().lower() == wanted.lower() for c in columns)
    if asked_for or twin:
        return column(table, wanted, f"prepare.{key}", name)
    return pd.Series(None, index=table.index, dtype="str")


def _values(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column as numbers where all that is there are some, infinite ones missing, else as text."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return text(column)
    numbers = pd.to_numeric(column, errors="coerce")
    if not (numbers.notna() == column.notna()).all():
        return text(column)
    return numbers.replace([np.inf, -np.inf], np.nan)


def _labels(column: pd.Series[Any], params: PrepareParams, name: str) -> pd.Series[Any]:
    """One text an example: its label, or with `prepare.label_separator` all that it has.

    A cell is a text with separators, or a list.
    """
    free = column.dtype == object  # other kinds of columns hold no lists
    found = [isinstance(value, _LISTS) for value in column] if free else False
    lists = pd.Series(found, column.index, dtype=bool)
    if not params.label_separator:
        if (row := first(lists)) is not None:
            raise DataError(
                f"{name}, {row}: {params.label_column!r} is a list; where examples have several "
                'labels each, set prepare.label_separator, such as "|"'
            )
        odd = pd.Series([_is_no_name(value) for value in column], column.index, dtype=bool)
        if (row := first(odd)) is not None:
            found = column[odd].iloc[0]
            raise DataError(_no_name(f"{name}, {row}: {params.label_column!r}", found))
        return _filled(_without_nan(text(column)), params.label_column, name)
    texts = text(column.where(~lists, None))
    labels = [
        _several(value if is_list else cell, params.label_separator, f"{name}, {place}")
        for place, value, is_list, cell in zip(
            (f"{column.index.name} {number}" for number in column.index),
            column,
            lists,
            texts,
            strict=True,
        )
    ]
    return pd.Series(labels, column.index, dtype="str")


def _several(cell: Any, separator: str, where: str) -> str:
    """The labels of a cell as one text; of an empty one, that there is none."""
    if isinstance(cell, str):
        cell = cell.split(separator)
    values = [value for value in cell if not _is_missing(value)] if isinstance(cell, _LISTS) else []
    if odd := [value for value in values if isinstance(value, (*_LISTS, dict))]:
        raise DataError(f"{where}: among the labels is {odd[0]!r}, not a text or a number")
    if odd := [value for value in values if _is_no_name(value)]:
        raise DataError(_no_name(f"{where}: a label", odd[0]))
    try:
        return labelling.canonical(map(_plain, values))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def _plain(value: Any) -> Any:
    """A whole number as such, however it is stored."""
    is_whole = isinstance(value, _FLOATS) and abs(value) < EXACT and value == round(value)
    return int(value) if is_whole else value


def _is_no_name(value: Any) -> bool:
    return isinstance(value, _FLOATS) and abs(value) >= EXACT


def _no_name(what: str, value: Any) -> str:
    return f"{what} is the number {value}, which names no class: write texts or whole numbers"


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _filled(labels: pd.Series[Any], column: str, name: str) -> pd.Series[Any]:
    if (row := first(labels.isna())) is not None:
        more = int(labels.isna().sum()) - 1
        also = f" (and {more} more)" if more else ""
        raise DataError(f"{name}, {row} has no {column}{also}: fill it in or remove the row")
    return labels


def _without_nan(labels: pd.Series[Any]) -> pd.Series[Any]:
    """Labels of which those that say `nan` are missing where all others are numbers: a table of
    numbers was written so. Among names it is a name."""
    nan = labels.str.lower() == "nan"
    others = labels[~nan].dropna()
    numbers = len(others) > 0 and pd.to_numeric(others, errors="coerce").notna().all()
    return labels.where(~nan, None) if numbers else labels


def _splits(column: pd.Series[Any], name: str) -> pd.Series[Any]:
    """Given splits under their own names; an empty one is to be drawn."""
    given = text(column).str.lower()
    splits = given.map(SPLIT_NAMES)
    unknown = splits.isna() & given.notna()
    if (row := first(unknown)) is not None:
        split = given[unknown].iloc[0]
        raise DataError(
            f"{name}, {row}: unknown split {split!r}{nearest(split, SPLIT_NAMES)}; "
            "known: train, validation, test, or empty"
        )
    return splits.astype("str")
