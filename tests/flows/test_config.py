"""A wrong config names the file, the line, the field and what is allowed, before anything starts."""

import textwrap

import pytest

from flows.config import ConfigError, load
from stages.config import How, SourceDir, SourceFile, SourceFiles, StageConfig
from storage.digests import Digests


@pytest.fixture
def config(tmp_path):
    """A valid config over small files; returns a function that writes it with one line replaced."""
    for name in ("train.json", "val.json", "imagebind.pth"):
        (tmp_path / name).write_text("{}")
    for name in ("images", "llm"):
        (tmp_path / name).mkdir()
    text = textwrap.dedent(f"""\
        name: small
        store: {tmp_path}/store
        images: {tmp_path}/images
        llm: {tmp_path}/llm
        ingest:
          annotations:
            val: {tmp_path}/val.json
        embed_imagebind:
          architecture: tiny
        finetune:
          recipe: connector
        evaluate:
          beams: 2
        """)

    def write(old: str = "", new: str = ""):
        assert old in text
        path = tmp_path / "config.yaml"
        path.write_text(text.replace(old, new) if old else text)
        return path

    return write


def test_shared_settings_reach_every_stage_that_has_them(config, tmp_path):
    pipeline = load(config())
    assert pipeline.ingest.images == pipeline.embed_imagebind.images == tmp_path / "images"
    assert pipeline.finetune.llm == pipeline.evaluate.llm == tmp_path / "llm"


def test_overrides_are_laid_over(config):
    assert load(config(), ["evaluate.beams=4", "embed_imagebind.seed=7"]).evaluate.beams == 4


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("  beams: 2", "  beans: 2", ":13: evaluate.beans: no such field; did you mean beams?"),
        ("  beams: 2", "  beams: 0", ":13: evaluate.beams: input should be greater than or equal to 1 (got 0)"),
        ("  beams: 2", "  beams: many", ":13: evaluate.beams: input should be a valid integer"),
        (
            "  architecture: tiny",
            "  architecture: small",
            ":9: embed_imagebind.architecture: input should be 'huge' or 'tiny'",
        ),
        ("name: small", "nmae: small", ":1: nmae: no such field; did you mean name?"),
        ("/val.json", "/gone.json", ":7: ingest.annotations.val: no file"),
        ("/llm", "/gone", ":4: finetune.llm: no folder"),
        ("  beams: 2", "  beams: 2\n  beams: 3", ":14: evaluate.beams is given twice"),
        ("  architecture: tiny", "  architecture: huge", ":8: embed_imagebind: weights: huge needs"),
        ("name: small", "name: [", "config.yaml"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_is_allowed(config, old, new, said):
    with pytest.raises(ConfigError) as error:
        load(config(old, new))
    assert said in str(error.value)


def test_a_wrong_override_names_itself(config):
    for override, said in [
        ("evaluate.beans=2", "--set evaluate.beans: evaluate.beans: no such field"),
        ("evaluate", "write it as field=value"),
        ("evaluate.beams=0", "--set evaluate.beams"),
    ]:
        with pytest.raises(ConfigError, match=said):
            load(config(), [override])


def test_yaml_cannot_make_objects(config):
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load(config("name: small", "name: !!python/object/apply:os.getcwd []"))


class Example(StageConfig):
    STAGE, VERSION, KIND = "ingest", 1, "samples"
    plain: int = 1
    how: How[str] = "auto"
    maybe_how: How[int | None] = None
    weights: SourceFile | None = None
    folder: SourceDir | None = None
    files: SourceFiles = {}


def test_how_stays_out_of_the_key_and_sources_enter_by_their_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    digests = Digests(tmp_path / "memory.sqlite")
    one, other = (Example(weights=tmp_path / name, files={"x": tmp_path / name}, how=name) for name in "ab")
    assert one.key_fields() == other.key_fields() == {"plain": 1}
    assert one.sources(digests) == other.sources(digests) and set(one.sources(digests)) == {"weights", "files.x"}
    (tmp_path / "b").write_bytes(b"22")
    assert one.sources(digests) != other.sources(digests)
    with pytest.raises(FileNotFoundError, match=r"ingest\.folder: no folder"):
        Example(folder=tmp_path / "gone").sources(digests)
