"""One pipeline's config: a YAML file, typed, every mistake named with its line before anything starts."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flows.runners.settings import RunnerSettings
from stages.config import StageConfig
from stages.embed_imagebind.config import EmbedConfig
from stages.evaluate.config import EvaluateConfig
from stages.extract_frames.config import ExtractConfig
from stages.finetune.config import FinetuneConfig
from stages.ingest.config import IngestConfig


class ConfigError(Exception):
    """The config is wrong. The message has one line a mistake: file, line, field, what is allowed."""


class Pipeline(BaseModel):
    """A pipeline: where its store is, and the settings of its stages.

    The fields of SHARED are given once here and handed to each stage that has such a field and does not set its own.
    A pipeline over images has no `extract_frames`; one with a `checkpoint` trains nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="names the runs; small letters, digits, - and _")
    store: str = Field("store", description="folder or fsspec URL of the store")
    retries: int = Field(2, ge=0, le=10, description="tries again after a stage says that it may pass later")
    checkpoint: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{6,64}$",
        description="key of a checkpoint in the store, or its first digits: it is evaluated, and nothing is trained",
    )
    runner: RunnerSettings = Field(default_factory=RunnerSettings, description="where the stages run")
    ingest: IngestConfig
    extract_frames: ExtractConfig | None = None
    embed_imagebind: EmbedConfig
    finetune: FinetuneConfig
    evaluate: EvaluateConfig

    @model_validator(mode="after")
    def _frames_for_videos(self) -> "Pipeline":
        if self.ingest.described.kinds == ("video",) and self.extract_frames is None:
            raise ValueError(f"ingest.format {self.ingest.format} is about videos: add a section `extract_frames:`")
        return self

    @model_validator(mode="after")
    def _parts_of_what_splits(self) -> "Pipeline":
        for name, needs in self.runner.stages.items():
            if needs.part_items and not STAGES[name].SPLITS:
                raise ValueError(f"runner.stages.{name}.part_items: {name} does not split into parts: take it out")
        return self

    def stages(self) -> list[StageConfig]:
        """The stages in the order of the DAG."""
        frames = [self.extract_frames] if self.extract_frames else []
        train = [] if self.checkpoint else [self.finetune]
        return [self.ingest, *frames, self.embed_imagebind, *train, self.evaluate]


SHARED = ("images", "videos", "llm", "text_tokenizer", "qformer_weights", "device")
STAGES: dict[str, type[StageConfig]] = {
    name: kind
    for name, field in Pipeline.model_fields.items()
    for kind in (field.annotation, *get_args(field.annotation))
    if isinstance(kind, type) and issubclass(kind, StageConfig)
}


def load(path: Path | str, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a config, lay `a.b=value` overrides over it, and check all of it.

    Relative paths are taken from the folder where the command runs. Raises ConfigError naming every mistake.
    """
    values, lines = read(path, overrides)
    pipeline = validated(values, lines, path)
    problems = [problem for stage in pipeline.stages() for problem in stage.problems()]
    if problems:
        raise ConfigError(
            "\n".join(f"{_where(tuple(p.split(':')[0].split('.')), lines, str(path))}{p}" for p in problems)
        )
    return pipeline


def validated(values: dict[str, Any], lines: dict[tuple[str, ...], str], path: Path | str) -> Pipeline:
    """The pipeline of values as `read` gives them. Raises ConfigError naming every mistake and its line."""
    try:
        return Pipeline.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e, lines, str(path)) for e in error.errors())) from None


def read(path: Path | str, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """The values of a config with overrides laid over, and for each field where it was given."""
    try:
        text = Path(path).read_text()
        root, values = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"no config file {path}; configs/ has some to begin with") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: a config is a mapping of fields to values")
    lines: dict[tuple[str, ...], str] = {}
    _record_lines(root, (), str(path), lines)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not all(name.split(".")):
            raise ConfigError(f"--set {override}: write it as field=value, as in --set finetune.epochs=2")
        _lay(values, tuple(name.split(".")), _scalar(text, override), override)
        lines[tuple(name.split("."))] = f"--set {name}"
    _hand_down(values, lines)
    return values, lines


def _record_lines(node: yaml.Node, at: tuple[str, ...], path: str, lines: dict[tuple[str, ...], str]) -> None:
    lines.setdefault(at, f"{path}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            field = (*at, str(key.value))
            if field in lines:
                raise ConfigError(f"{path}:{key.start_mark.line + 1}: {'.'.join(field)} is given twice")
            lines[field] = f"{path}:{key.start_mark.line + 1}"
            _record_lines(value, field, path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            _record_lines(value, (*at, str(position)), path, lines)


def _lay(values: dict[str, Any], field: tuple[str, ...], value: Any, override: str) -> None:
    for part in field[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {part} has no fields")
    values[field[-1]] = value


def _scalar(text: str, override: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {error}") from None


def _hand_down(values: dict[str, Any], lines: dict[tuple[str, ...], str]) -> None:
    """Give the shared settings to every stage that has such a field and does not set its own."""
    for name in SHARED:
        if name not in values:
            continue
        value = values.pop(name)
        for stage, config in STAGES.items():
            if stage not in values and not Pipeline.model_fields[stage].is_required():
                continue  # the pipeline does without it
            section = values.setdefault(stage, {})
            if name in config.model_fields and isinstance(section, dict) and name not in section:
                section[name] = value
                lines[stage, name] = lines[(name,)]


def _explain(error: Any, lines: dict[tuple[str, ...], str], path: str) -> str:
    """One pydantic error as one line: where, which field, what is wrong, what is allowed."""
    field = tuple(str(part) for part in error["loc"])
    said = f"{_where(field, lines, path)}{'.'.join(field) or 'config'}: "
    if error["type"] == "extra_forbidden":
        allowed = _fields(field[:-1])
        near = difflib.get_close_matches(field[-1], allowed, 1)
        return said + "no such field" + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(allowed)}")
    if error["type"] == "missing":
        return said + "must be given"
    message = error["msg"].removeprefix("Value error, ")
    got = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"[:120]
    return said + message[0].lower() + message[1:] + got


def _fields(at: tuple[str, ...]) -> list[str]:
    model: Any = Pipeline
    for part in at:
        annotation = getattr(model.model_fields.get(part), "annotation", None)
        model = next((a for a in get_args(annotation) if a is not type(None)), annotation)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    names = sorted(model.model_fields)
    return sorted([*names, *SHARED]) if model is Pipeline else names


def _where(field: tuple[str, ...], lines: dict[tuple[str, ...], str], path: str) -> str:
    while field and field not in lines:
        field = field[:-1]
    return f"{lines.get(field, path)}: "


def store_url(pipeline: Pipeline) -> str:
    """The store as a URL or absolute path, so that it means the same in every process."""
    return pipeline.store if "://" in pipeline.store else os.path.abspath(os.path.expanduser(pipeline.store))
