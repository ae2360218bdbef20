"""A change of any field changes the key; the order of fields does not."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import canonical, differences, key_of

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
records = st.dictionaries(st.text(min_size=1), values, min_size=1, max_size=6)


def shuffled(value, rng):
    if isinstance(value, dict):
        items = [(name, shuffled(inner, rng)) for name, inner in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(inner, rng) for inner in value] if isinstance(value, list) else value


@given(records, st.integers())
def test_order_of_fields_does_not_matter(record, seed):
    assert key_of(shuffled(record, random.Random(seed))) == key_of(record)


@given(records, st.data())
def test_any_change_of_a_field_changes_the_key(record, data):
    name = data.draw(st.sampled_from(sorted(record)))
    other = data.draw(
        values.filter(lambda v: json.dumps(v, sort_keys=True) != json.dumps(record[name], sort_keys=True))
    )
    assert key_of(record | {name: other}) != key_of(record)
    assert key_of({n: v for n, v in record.items() if n != name}) != key_of(record)


@given(records, records)
def test_differences_are_empty_exactly_when_keys_are_equal(old, new):
    # An absent field and a null one differ in the key but read the same in a list of differences.
    if not differences(old, new):
        assert canonical(old) == canonical(new) or None in (*old.values(), *new.values()) or old.keys() != new.keys()
    assert not differences(old, old)


def test_types_stay_distinct_and_what_json_cannot_say_is_refused():
    assert len({key_of({"a": value}) for value in (1, 1.0, "1", True, [1], {"1": 1})}) == 6
    with pytest.raises(ValueError, match=r"record\.lr: nan"):
        key_of({"lr": float("nan")})
    with pytest.raises(TypeError, match="field names are strings"):
        key_of({"a": {1: 2}})
    with pytest.raises(TypeError, match=r"record\.path: PosixPath"):
        from pathlib import Path

        key_of({"path": Path("x")})


def test_differences_name_the_nested_field():
    assert differences({"c": {"lr": 1, "seed": 2}}, {"c": {"lr": 3, "seed": 2}}) == {"c.lr": (1, 3)}
