"""`python -m stages.evaluate.ask`: the model's own answer, as it comes, and what its memory kept."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from demo.tiny_language_model import write_tiny_llm
from malmm.model import MultimodalModel
from malmm.prompt import Template
from stages.evaluate import ask, inquiry
from stages.evaluate.inquiry import Inquiry, Request, look, main
from tests.evaluate.one_video import OneVideo
from tests.stage_command import ROOT


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture
def one(tmp_path, tiny_llm) -> OneVideo:
    return OneVideo(tmp_path / "store", tiny_llm)


@pytest.fixture
def asked(one, tmp_path, capsys):
    def ask_it(**more) -> tuple[str, str]:
        request = tmp_path / "request.json"
        request.write_text(one.request(tmp_path, **more))
        main("ask", "", ask.run, [str(request)])
        return capsys.readouterr()

    return ask_it


def answer_of(one: OneVideo, tmp_path) -> str:
    scene = look(Inquiry(Request.model_validate_json(one.request(tmp_path))))
    return one.trained().generate(scene.batch, max_new_tokens=6)[0]


@pytest.mark.slow
def test_the_command_answers_and_tells_its_memory(one, tmp_path):
    command = [sys.executable, "-m", "stages.evaluate.ask", "-"]
    done = subprocess.run(command, input=one.request(tmp_path), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == answer_of(one, tmp_path)
    assert done.stderr.splitlines()[-2:] == [
        "memory: 0:00.0-0:00.3 (3 frames), 0:00.3-0:01.2 (9 frames), 0:01.2-0:01.7 (5 frames), "
        "0:01.7-0:02.3 (6 frames), 0:02.3-0:02.4 (1 frame)",
        "24 frames of 0:00.0-0:02.4 in 5 moments",
    ]


def test_the_answer_is_what_evaluation_generates(one, asked, tmp_path):
    out, _ = asked()
    assert out.strip() and out.strip() == answer_of(one, tmp_path)


def test_pieces_are_written_when_they_come(one, tmp_path, monkeypatch):
    """The first is out of every buffer before the second is asked for."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw, 1 << 20)))

    def stream(self, batch, max_new_tokens):
        for piece in ("a ", "red ", "van"):
            yield piece
            seen.append(raw.getvalue().decode())

    seen: list[str] = []
    monkeypatch.setattr(MultimodalModel, "stream", stream)
    ask.run(Request.model_validate_json(one.request(tmp_path)))
    assert seen == ["a ", "a red ", "a red van"]
    assert raw.getvalue() == b"a red van\n"


def test_nothing_but_the_answer_is_on_standard_output(one, asked, monkeypatch):
    build = inquiry.build_model

    def noisy(*arguments):
        print("a library says something")
        return build(*arguments)

    monkeypatch.setattr(inquiry, "build_model", noisy)
    out, err = asked()
    assert "a library" not in out and "a library" in err


def test_without_banks_every_frame_was_seen(one, asked):
    one.checkpoint("no bank", memory_bank_length=0)
    out, err = asked()
    assert out.strip()
    assert err.splitlines()[-1] == "memory: off; all 24 frames of 0:00.0-0:02.4 were seen, none merged"


def test_of_several_token_positions_it_says_so(tmp_path, tiny_llm, capsys):
    one = OneVideo(tmp_path / "store", tiny_llm, tokens=3)
    ask.run(Request.model_validate_json(one.request(tmp_path)))
    assert capsys.readouterr().err.endswith("moments at the first token position\n")


def test_refusals_come_before_the_language_model_is_loaded(one, asked, monkeypatch, capsys):
    monkeypatch.setattr(inquiry, "build_model", None)
    with pytest.raises(SystemExit) as end:
        asked(question="why?")
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (65, "") and "give ingest that question" in err


def test_what_the_model_refuses_is_a_message(one, asked, capsys):
    one.checkpoint("captions", template=Template("{visual}{caption} {question}"))
    with pytest.raises(SystemExit) as end:
        asked()
    _, err = capsys.readouterr()
    assert end.value.code == 65 and "the sample has none" in err and "Traceback" not in err
