"""For every stage: a field that changes the output changes the key, one that does not leaves it."""

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from flows.config import STAGES
from stages.finetune.config import LoraSizes
from stages.identity import record_of
from storage import key_of

FIELDS = [(stage, name) for stage, config in STAGES.items() for name in config.model_fields]


def valid(stage: str) -> BaseModel:
    """A config of the stage, as far as its class lets one be made without files."""
    config = STAGES[stage]
    given = {"annotations": {"val": "/a.json"}, "llm": "/llm", "architecture": "tiny"}
    given |= {"videos": "/videos"} if stage == "extract_frames" else {"images": "/images"}
    return config(**{name: value for name, value in given.items() if name in config.model_fields})


def another(name: str, value: Any, annotation: Any) -> Any:
    """Some other value of a field's type."""
    if get_origin(annotation) is Literal:
        return next(choice for choice in (*get_args(annotation), "another") if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, BaseModel):
        first = next(iter(type(value).model_fields))
        return value.model_copy(update={first: getattr(value, first) + 1})
    if isinstance(value, tuple):
        return value[1:] if value else ("another",)
    if isinstance(value, (str, Path)):
        return type(value)(f"{value}x")
    if int in get_args(annotation):
        return 7
    return LoraSizes() if name == "lora" else Path("/another")


@pytest.mark.parametrize("stage, name", FIELDS)
def test_a_field_changes_the_key_exactly_when_it_changes_the_output(stage, name):
    config = valid(stage)
    if name == "weights":  # with weights given, the seed of random ones is not in the key
        config = config.model_copy(update={name: Path("/weights.pth")})
    field = type(config).model_fields[name]
    changed = config.model_copy(update={name: another(name, getattr(config, name), field.annotation)})
    inputs = dict.fromkeys(config.INPUTS, "ab" * 32)
    keys = [key_of(record_of(c, inputs, {"a source": "cd"})) for c in (config, changed)]
    if type(config).in_key(name) == "yes":
        assert keys[0] != keys[1]
    else:  # bytes enter by their digest, which `sources` holds
        assert keys[0] == keys[1]


@pytest.mark.parametrize("stage", STAGES)
def test_inputs_sources_libraries_and_items_are_in_the_record(stage):
    config = valid(stage)
    inputs = dict.fromkeys(config.INPUTS, "ab" * 32)
    record = record_of(config, inputs, {"a": "cd"}, ["one"])
    assert record["inputs"] == inputs and record["sources"] == {"a": "cd"} and record["only"] == ["one"]
    assert set(record["libraries"]) == set(config.LIBRARIES) and all(record["libraries"].values())
    keys = {key_of(record)} | {key_of(record | {name: "other"}) for name in record}
    assert len(keys) == 1 + len(record) and json.dumps(record)
