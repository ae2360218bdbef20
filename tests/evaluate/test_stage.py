from pathlib import Path

import numpy as np
import pytest

from demo.tiny_language_model import write_tiny_llm
from stages.evaluate.controls import permuted
from stages.evaluate.ranking import place
from storage import Store
from tests.evaluate.pipeline import CANDIDATES, Inputs, digest, rows
from tests.stage_command import run_stage

SYSTEMS = ("trained", "untrained", "permuted", "majority")


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture
def inputs(tmp_path, tiny_llm) -> Inputs:
    return Inputs(tmp_path / "store", tiny_llm)


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory, tiny_llm):
    """One whole run by the stage's real command, METEOR too, which several tests look at."""
    inputs = Inputs(tmp_path_factory.mktemp("evaluated"), tiny_llm)
    outcome = run_stage("evaluate", inputs.config(meteor=True), inputs.store, inputs.keys)
    return inputs, outcome, outcome.artifact(inputs.store)


def files_of(artifact) -> dict[str, str]:
    return {name: about["sha256"] for name, about in artifact.manifest["files"].items()}


@pytest.mark.slow
def test_scores_of_every_system_with_intervals(evaluated):
    _, outcome, report = evaluated
    metrics = report.read_json("metrics.json")
    assert set(metrics) == set(SYSTEMS)
    for system in SYSTEMS:
        assert set(metrics[system]) == {
            "bleu_1",
            "bleu_2",
            "bleu_3",
            "bleu_4",
            "meteor",
            "rouge_l",
            "cider",
            "exact_match",
            "recall_1",
            "recall_5",
            "recall_10",
            "mean_rank",
            "mrr",
            "ndcg",
        }
        assert metrics[system]["mrr"]["n"] == 12 and metrics[system]["ndcg"]["n"] == 4
        for score in metrics[system].values():
            assert score["low"] <= score["high"]
    # Training answers are "yes" at turns 0 and 2, "no" at turn 1; a quarter of the val answers is "yes".
    assert metrics["majority"]["exact_match"]["value"] == pytest.approx(0.25)
    assert metrics["majority"]["recall_1"]["value"] == pytest.approx(0.25)
    said = {event["name"]: event["value"] for event in outcome.of("metric")}
    assert said["trained.mrr"] == metrics["trained"]["mrr"]["value"]


def test_predictions_hold_every_answer_and_agree_with_the_scores(evaluated):
    inputs, _, report = evaluated
    table = report.read_table("predictions.parquet").to_pylist()
    val = [row for row in inputs.rows if row["split"] == "val"]
    assert [row["sample"] for row in table] == [row["sample"] for row in val]
    metrics = report.read_json("metrics.json")
    for row, sample in zip(table, val, strict=True):
        for system in SYSTEMS:
            assert len(row[f"{system}_candidates"]) == len(CANDIDATES)
            found = place(np.array(row[f"{system}_candidates"]), sample["gt_index"])
            assert (row[f"{system}_rank"], row[f"{system}_mrr"]) == (found.rank, found.reciprocal)
    assert np.mean([row["trained_rank"] for row in table]) == pytest.approx(metrics["trained"]["mean_rank"]["value"])


def test_systems_are_what_they_are_called(evaluated):
    """The same calls to the model, made here, give the same candidate scores."""
    import safetensors.torch
    import torch

    from malmm.model import build_model
    from stages.evaluate.features import Features
    from storage import Artifact
    from tests.evaluate.pipeline import MODEL

    inputs, _, report = evaluated
    table = report.read_table("predictions.parquet").to_pylist()
    val = [row for row in inputs.rows if row["split"] == "val"]
    features = Features(Artifact(Store(inputs.store), "features", inputs.keys["features"]), val, None)
    torch.set_num_threads(1)
    model = build_model(MODEL, inputs.llm)
    state = safetensors.torch.load(
        (inputs.store / f"artifacts/checkpoint/{inputs.keys['checkpoint']}/model.safetensors").read_bytes()
    )
    shown = permuted([row["media"] for row in val], seed=42)
    assert all(a != b for a, b in shown.items())
    shown = {(media, None, None): (other, None, None) for media, other in shown.items()}
    for system, other in (("untrained", None), ("trained", None), ("permuted", shown)):
        if system == "trained":
            model.load_trained(state)
        scores = model.rank(features.batch(val, other), [row["candidates"] for row in val])
        np.testing.assert_allclose([row[f"{system}_candidates"] for row in table], torch.stack(scores), atol=1e-4)
    assert [r["trained_candidates"] for r in table] != [r["permuted_candidates"] for r in table]


def test_the_report_says_first_what_matters_most(evaluated):
    inputs, _, report = evaluated
    text = report.read_bytes("report.md").decode()
    assert text.startswith("> **Warning:** the encoder has random weights")
    for part in (
        "Tokenizer of the text scores: PTB",
        "trained, images permuted",
        "Majority answer: `yes`",
        "R@10",
        "12 samples of 4 dialogues, split `val`",
        *inputs.keys.values(),
        report.key,
    ):
        assert part in text
    assert report.read_bytes("scores.png").startswith(b"\x89PNG")
    assert {"scores.png", "ranks.png", "turns.png"} <= set(report.manifest["files"])
    assert str(inputs.store) not in text and str(inputs.llm) not in text


def test_every_answer_is_in_the_ledger_once(evaluated):
    inputs, _, report = evaluated
    ledger = report.ledger().to_pylist()
    val = [row["sample"] for row in inputs.rows if row["split"] == "val"]
    assert {row["id"] for row in ledger} == {f"{s}/{v}" for s in ("trained", "untrained", "permuted") for v in val}
    assert len(ledger) == 36 and {row["status"] for row in ledger} == {"done"}


def test_a_second_run_does_nothing_and_a_forced_one_gives_the_same_bytes(inputs):
    first = inputs.evaluate()
    again = inputs.evaluate()
    assert again.of("done")[0]["reused"] and not again.of("progress")
    forced = inputs.evaluate(force=True)
    assert files_of(forced.artifact(inputs.store)) == files_of(first.artifact(inputs.store))


def test_a_killed_run_is_taken_up_where_it_was(tmp_path, tiny_llm):
    """SIGKILL once something is saved: the next run keeps it, and ends with an undisturbed run's bytes."""
    calm, killed = Inputs(tmp_path / "calm", tiny_llm), Inputs(tmp_path / "killed", tiny_llm)
    one_by_one = {"config": calm.config(batch=1)}
    expected = files_of(calm.evaluate(**one_by_one).artifact(calm.store))
    for at_least in (5, 17, 30):
        killed.killed_at(at_least, **one_by_one)
    assert not list(killed.store.glob("artifacts/report/*/manifest.json"))

    report = killed.evaluate(**one_by_one).artifact(killed.store)
    untimed = [row["seconds"] is None for row in report.ledger().to_pylist()]  # of answers that were there already
    assert sum(untimed) >= 30 and report.manifest["counts"] == {"done": 36, "reused": 0, "failed": 0, "skipped": 0}
    assert files_of(report) == expected
    assert not (killed.store / f"artifacts/report/{report.key}/partial").exists()


def test_another_language_model_is_refused(inputs):
    inputs.checkpoint("other", llm_digest="f" * 64)
    outcome = inputs.evaluate()
    assert outcome.code == 78 and "evaluate.llm" in outcome.message


def test_embeddings_of_another_encoder_are_refused(inputs):
    inputs.features("other-encoder", "other features")
    outcome = inputs.evaluate()
    assert outcome.code == 65 and "tiny-0123456789abcdef" in outcome.message


def test_a_missing_embedding_is_an_error_with_its_name(inputs):
    changed = rows()
    changed[-1]["media"] = digest("an image nobody embedded")
    inputs.samples(changed, "more")
    outcome = inputs.evaluate()
    assert outcome.code == 65 and digest("an image nobody embedded") in outcome.message


def test_without_candidates_images_or_training_answers_it_says_so(inputs):
    changed = [
        row | {"candidates": None, "gt_index": None, "relevance": None} for row in rows() if row["split"] == "val"
    ]
    changed[0]["media"], changed[1]["answer"] = None, None
    inputs.samples(changed, "less")
    report = inputs.evaluate().artifact(inputs.store)
    warnings = " ".join(report.manifest["warnings"])
    for part in (
        "nothing is ranked",
        "1 of 12 samples of split val have no image",
        "have no answer",
        "majority answer is left out",
    ):
        assert part in warnings
    metrics = report.read_json("metrics.json")
    assert set(metrics) == {"trained", "untrained", "permuted"} and "mrr" not in metrics["trained"]
    assert report.manifest["counts"] == {"done": 30, "reused": 0, "failed": 0, "skipped": 6}


def test_a_sample_the_model_refuses_is_recorded_and_left_out(inputs):
    changed = rows()
    changed[-2]["turn"] = 99  # turn_pe has no such row
    inputs.samples(changed, "refused")
    strict = inputs.evaluate()
    assert strict.code == 65 and "1 of 12 samples failed" in strict.message
    assert "turn 99" in strict.of("item_failed")[0]["message"]
    report = inputs.evaluate(config=inputs.config(max_failed_share=0.1)).artifact(inputs.store)
    failed = [row for row in report.ledger().to_pylist() if row["status"] == "failed"]
    assert [row["id"] for row in failed] == [f"{s}/val/3/1" for s in ("permuted", "trained", "untrained")]
    assert "turn 99" in failed[0]["message"]
    assert "1 of 12 samples failed" in " ".join(report.manifest["warnings"])
    assert report.read_json("metrics.json")["trained"]["mrr"]["n"] == 11


def test_protocol_seed_scores_white_space_tokens_against_both(inputs):
    report = inputs.evaluate(config=inputs.config(protocol="seed", ranking=5)).artifact(inputs.store)
    metrics = report.read_json("metrics.json")["trained"]
    assert {"seed_bleu_4", "seed_bleu_4_question", "exact_match"} <= set(metrics) and "bleu_4" not in metrics
    assert metrics["mrr"]["n"] == 5
    text = report.read_bytes("report.md").decode()
    assert "14.96" in text and "no answer BLEU" in text and "PTB" not in text


def test_one_dialogue_only(inputs):
    report = inputs.evaluate(only=["val/2"]).artifact(inputs.store)
    metrics = report.read_json("metrics.json")
    assert metrics["trained"]["exact_match"]["n"] == 3 and metrics["trained"]["exact_match"]["low"] is None
    assert "single image" in " ".join(report.manifest["warnings"])


@pytest.mark.parametrize(("fields", "code", "says"), [
    ({"split": "test"}, 65, "no split 'test'"),
    ({"beams": 0}, 78, "beams"),
    ({"ranking": -1}, 78, "ranking"),
])  # fmt: skip
def test_wrong_settings_are_named(inputs, fields, code, says):
    outcome = inputs.evaluate(config=inputs.config(**fields))
    assert outcome.code == code and says in outcome.message
