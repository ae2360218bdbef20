"""The data sets' configs: what each command in their headers gives is a pipeline that lacks nothing but files."""

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from flows.config import Pipeline, read
from stages.ingest import questions
from stages.ingest.formats import FORMATS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DOCS = CONFIGS.parent / "docs" / "datasets"

# MA-LMM's run scripts: bank, frames, learning rate, epochs, samples a step on four GPUs, longest and shortest answer.
PAPER = {
    "lvu": (20, 100, 1e-4, 20, 16 * 4, 5, 1),
    "breakfast": (20, 100, 1e-4, 20, 16 * 4, 20, 1),
    "coin": (20, 100, 1e-4, 20, 16 * 4, 20, 1),
    "msrvtt_qa": (10, 20, 1e-4, 5, 32 * 4, 10, 1),
    "msvd_qa": (10, 20, 1e-4, 5, 32 * 4, 10, 1),
    "activitynet_qa": (10, 20, 1e-4, 5, 32 * 4, 10, 1),
    "msrvtt_cap": (40, 80, 1e-5, 10, 16 * 4 * 2, 50, 1),
    "msvd_cap": (40, 80, 1e-5, 10, 16 * 4 * 2, 50, 1),
    "youcook2_cap": (40, 80, 1e-4, 10, 16 * 4 * 2, 30, 2),
}


def header(name: str) -> str:
    return (CONFIGS / f"{name}.yaml").read_text().split("\nname:")[0]


def overrides(name: str) -> list[list[str]]:
    """The --set values of every `malmm run` in a config's header."""
    text = header(name).replace(" \\\n#", "")
    commands = [line for line in text.split("\n") if line.startswith("#   malmm run")]
    words = [shlex.split(line.removeprefix("#")) for line in commands]
    assert all(line[:3] == ["malmm", "run", f"configs/{name}.yaml"] for line in words)
    return [[value for flag, value in itertools.pairwise(line) if flag == "--set"] for line in words]


def pipeline(name: str, given: list[str]) -> Pipeline:
    values, _ = read(CONFIGS / f"{name}.yaml", given)
    return Pipeline.model_validate(values)


@pytest.mark.parametrize("name", PAPER)
def test_every_command_of_a_config_lacks_nothing_but_files(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where no data lies
    commands = overrides(name)
    assert [] in commands and ["finetune.max_steps=0"] in commands and any("vicuna" in str(c) for c in commands)
    for given in commands:
        made = pipeline(name, given)
        assert made.name == made.ingest.format == name and made.extract_frames is not None
        for shared in ("llm", "text_tokenizer", "qformer_weights"):  # evaluate opens what finetune began with
            assert getattr(made.finetune, shared) == getattr(made.evaluate, shared)
        problems = [problem for stage in made.stages() for problem in stage.problems()]
        wrong = [problem for problem in problems if not re.search(r": no (file|folder) ", problem)]
        assert wrong == [] and any(f"{tmp_path}/data/" in problem for problem in problems)


@pytest.mark.parametrize("name, paper", PAPER.items())
def test_the_settings_are_those_of_the_official_run_scripts(name, paper):
    made = pipeline(name, [])
    train, score = made.finetune, made.evaluate
    assert (
        train.memory_bank_length, train.frames, train.lr, train.epochs, train.batch * train.accumulate,
        score.max_new_tokens, score.min_new_tokens,
    ) == paper  # fmt: skip
    assert (train.weight_decay, train.seed, score.beams, made.extract_frames.fps) == (0.05, 42, 5, 10)
    assert (train.frame_choice == "linspace") == (name == "lvu") and (score.length_penalty == 0) == ("_qa" in name)
    assert set(train.trainable) == {"imagebind_fc", "image_pe", "ln_vision", "query_tokens", "qformer", "llm_proj"}
    assert score.split in made.ingest.annotations and train.train_split in made.ingest.annotations
    prompt = "{visual}Question: {question} Short answer:" if "_qa" in name else "{visual}{question}"
    assert train.template == prompt and train.qformer_text == "prompt"


@pytest.mark.parametrize("name", PAPER)
def test_a_config_names_the_page_that_says_where_its_files_go(name):
    (page,) = re.findall(r"docs/datasets/(\w+\.md)", header(name).replace("docs/datasets/README.md", ""))
    told = (DOCS / page).read_text()
    made = pipeline(name, [])
    assert f"malmm run configs/{name}.yaml" in told and page in (DOCS / "README.md").read_text()
    for path in made.ingest.annotations.values():
        assert path.name in told
    assert f"data/{made.ingest.videos.parent.name}/videos/" in told
    assert "as remembered" in told and "as remembered" in header(name)


def test_the_example_of_own_questions_is_read():
    told = (DOCS / "questions.md").read_text()
    example = json.loads(re.search(r"^    \[\n.*?^    \]$", told, re.M | re.S).group())
    found = FORMATS["questions"].read(example, "test", "questions.md")
    assert found.broken == {} and len(found.items) == 2
    table = re.findall(r"^\| (`.*?) \|", told, re.M)
    assert {name for cell in table for name in re.findall(r"`(\w+)`", cell)} == set(questions.FIELDS)
