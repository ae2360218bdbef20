"""Keys: SHA-256 of a canonical record, so that two runs with one key are one artifact."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def canonical(record: Mapping[str, Any]) -> bytes:
    """Serialise `record` so that equal records, whatever the order of their fields, are equal bytes.

    JSON in UTF-8, fields sorted at every depth, no blanks. 1 and 1.0 and "1" and true stay distinct.
    Raises TypeError for a value JSON has no form for, ValueError for NaN and infinities.
    """
    _check(record, "record")
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def key_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical record, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(record)).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields by dotted name whose values differ: name -> (old value, new value); absent counts as None."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= differences(before, after, f"{prefix}{name}.")
        elif canonical({"": before}) != canonical({"": after}):
            found[f"{prefix}{name}"] = (before, after)
    return found


def _check(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            # json.dumps would turn 1 and "1" into one name, and so two records into one key.
            if not isinstance(name, str):
                raise TypeError(f"{where}: field names are strings, not {name!r}")
            _check(inner, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        for position, inner in enumerate(value):
            _check(inner, f"{where}[{position}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} cannot enter a key")
    elif value is not None and not isinstance(value, (str, int, float, bool)):
        raise TypeError(f"{where}: {type(value).__name__} cannot enter a key")
