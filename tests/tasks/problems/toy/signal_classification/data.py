from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tasks.problems.signal_classification.parameters import SignalPrepare

from tasks.errors import DataError
from tasks.problems import INPUT

FILE = "signals.npy"


def parsed(text: Any, length: int) -> npt.NDArray[np.float32]:
    """float32 [length]; `ValueError` with the reason when the text is something else."""
    try:
        signal = np.array([float(part) for part in str(text).split()], np.float32)
    except ValueError:
        raise ValueError("not a list of numbers") from None
    if signal.shape != (length,):
        raise ValueError(f"{len(signal)} numbers, not {length}")
    return signal


def table(path: Path, params: SignalPrepare) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path.name} does not exist")
    try:
        frame = pd.read_csv(path, dtype=str)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise DataError(f"{path.name} is not a readable CSV file") from None
    if params.signal_column not in frame:
        raise DataError(f"{path.name} has no column {params.signal_column!r}")
    texts = frame[params.signal_column].to_numpy(object)
    return frame.assign(file=path.name, row=range(1, len(frame) + 1), **{INPUT: texts})


def read(params: SignalPrepare, root: Path) -> pd.DataFrame:
    frame = table(root / params.data, params)
    if params.label_column not in frame:
        raise DataError(f"{params.data} has no column {params.label_column!r}")
    missing = pd.Series(None, index=frame.index, dtype="str")
    return pd.DataFrame(
        {
            "source": "row " + frame["row"].astype(str),
            "label": frame[params.label_column],
            "split": frame.get(params.split_column, missing),
            "group": frame.get(params.group_column, missing),
            INPUT: frame[INPUT],
        }
    )


def store(
    frame: pd.DataFrame, folder: Path, params: SignalPrepare
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    found, refused, rows = [], [], []
    for row, text in enumerate(frame[INPUT]):
        try:
            found.append(parsed(text, params.length))
            rows.append(row)
        except ValueError as error:
            refused.append({"source": frame["source"].iloc[row], "reason": str(error)})
    np.save(folder / FILE, np.array(found, np.float32).reshape(-1, params.length))
    kept = frame.iloc[rows].drop(columns=[INPUT]).reset_index(drop=True)
    ids = [hashlib.sha256(signal.tobytes()).hexdigest() for signal in found]
    means = [float(signal.mean()) for signal in found]
    return kept.assign(id=ids, place=range(len(found)), mean=means), refused


def near_duplicates(frame: pd.DataFrame, folder: Path) -> npt.NDArray[np.int64]:
    signals = np.load(folder / FILE)[frame["place"]]
    apart = np.abs(signals[:, None] - signals[None]).max(-1)
    return np.argwhere(np.triu(apart < 1e-3, 1)).astype(np.int64)


def signals(folder: Path) -> npt.NDArray[np.float32]:
    """Of the manifest's rows, in order: [n, length]."""
    places = pd.read_parquet(folder / "manifest.parquet", columns=["place"])["place"]
    return np.asarray(np.load(folder / FILE)[places])
