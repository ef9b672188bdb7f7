"""Results: scores with what they are of, as JSON and as a table."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.files import atomic_write


class Score(NamedTuple):
    """One number.

    Attributes:
      subject: what is scored, such as "ddim:50", "data:test" or "images".
      metric: by what, such as "fid", "precision" or "bpd".
      value: the number; not finite if the computation came to that.
      error: its standard error or deviation, where known.
      warnings: what a reader of the number must know, one sentence each.
      protocol: all else that the number depends on, as JSON has it. Where the subject
        is a sampler, "network_calls" says how many a sample takes.
    """

    subject: str
    metric: str
    value: float
    error: float | None
    warnings: tuple[str, ...]
    protocol: dict[str, Any]

    @property
    def network_calls(self) -> int | None:
        """How many a sample takes, where the subject is a sampler."""
        return self.protocol.get("network_calls")

    @property
    def of_features(self) -> bool:
        """Whether it is of a feature network, which the protocol names."""
        return "features" in self.protocol


def merge(old: Iterable[Score], new: Iterable[Score]) -> list[Score]:
    """Adds scores to those of former runs.

    A new score takes the place of an old one of the same subject, metric and protocol,
    and goes to the end where there is none: numbers that do not compare both stay.
    """
    merged = list(old)
    keys = [_key(score) for score in merged]
    for score in new:
        key = _key(score)
        at = keys.index(key) if key in keys else len(keys)
        merged[at : at + 1], keys[at : at + 1] = [score], [key]
    return merged


def save(path: str | os.PathLike, scores: Iterable[Score]) -> None:
    """Writes scores as JSON, whole or not at all, creating the folder.

    The file holds a list of objects with the fields of `Score`. Numbers that JSON does
    not have are the strings "nan", "inf" and "-inf".

    Raises:
      TypeError: if a protocol is nothing that JSON has.
    """
    entries = [plain(score._asdict()) for score in scores]
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(entries, indent=2, allow_nan=False) + "\n")


def load(path: str | os.PathLike) -> list[Score]:
    """Reads what `save` wrote.

    Raises:
      OSError: if there is no such file.
      ValueError: if it holds anything but scores.
    """
    text = Path(path).read_bytes()
    try:
        return [_score(**entry) for entry in _list(json.loads(text))]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or holds no scores: move it away or give another --out"
        ) from error


def plain(value: Any) -> Any:
    """Returns what `load` gives back of a protocol, or of any part of one."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def table(scores: Iterable[Score]) -> str:
    """Lays out scores: a row for each subject, a column for each metric.

    Both are in the order in which they come. Values have four significant digits, or
    with an error the decimals of two digits of that; "calls" are those of the network
    for a sample. Warnings follow as numbered notes, each once.

    Args:
      scores: of one protocol; of two of the same subject and metric, the last counts.
    """
    rows, notes = {}, {}
    for score in scores:
        row = rows.setdefault(score.subject, {})
        numbers = [notes.setdefault(text, len(notes) + 1) for text in score.warnings]
        marks = ",".join(map(str, sorted(set(numbers))))
        row[score.metric] = (_number(score), f" [{marks}]" if marks else "")
        if score.network_calls:
            row["calls"] = (str(score.network_calls), "")
    names = dict.fromkeys(name for row in rows.values() for name in row)
    names = sorted(names, key=lambda name: name != "calls")  # that first
    columns = [_left(["", *rows]), *(_column(name, rows.values()) for name in names)]
    lines = ["   ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    if notes:
        lines += ["", *(f"[{number}] {text}" for text, number in notes.items())]
    return "\n".join(lines)


def _number(score):
    """Returns the value and its error in readable digits."""
    value, error = score.value, score.error
    if error is not None and error > 0 and math.isfinite(value + error):
        decimals = min(_decimals(error, 2), _decimals(value, 7))
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
    digits = f"{value:#.4g}".rstrip(".") if abs(value) < 9999.5 else f"{value:.0f}"
    return digits if error is None else f"{digits} ± {error:.2g}"


def _decimals(value, digits):
    """How many decimals show that many significant digits."""
    order = math.floor(math.log10(abs(value))) if value else -digits
    return max(digits - 1 - order, 0)


def _column(name, rows):
    """Aligns numbers to the right, and to the left of their notes."""
    cells = [row.get(name, ("", "")) for row in rows]
    width = max(len(name), *(len(value) for value, _ in cells))
    return _left(
        [name.rjust(width), *(value.rjust(width) + mark for value, mark in cells)]
    )


def _left(texts):
    width = max(map(len, texts))
    return [text.ljust(width) for text in texts]


def _key(score):
    return score.subject, score.metric, plain(score.protocol)


def _score(subject, metric, value, error, warnings, protocol):
    """Makes a score of a JSON object."""
    texts = (subject, metric, *_list(warnings))
    if not isinstance(protocol, dict) or not all(isinstance(t, str) for t in texts):
        raise TypeError("not a score")
    value, error = float(value), None if error is None else float(error)
    return Score(subject, metric, value, error, tuple(warnings), protocol)


def _list(value):
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value
