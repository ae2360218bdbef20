"""The shell of evaluate: samples, embeddings and a checkpoint in; predictions, scores and a report out."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import transformers

from malmm.model import build_model
from stages.contract import BadInput, Job
from stages.evaluate.bootstrap import Score
from stages.evaluate.checkpoint import Checkpoint, check_encoder, provenance
from stages.evaluate.controls import frequency_scores, majority_answer, permuted
from stages.evaluate.plots import draw_all
from stages.evaluate.predict import SYSTEMS, Features, kept, predict
from stages.evaluate.report import Context, render, warnings_of
from stages.evaluate.scoring import Answers, Item, Scored, score_systems, summarise, tokenizer_of
from stages.evaluate.text_metrics import normalise
from storage import Artifact
from storage.features import open_features

COLUMNS = [
    "sample", "dialogue", "media", "turn", "caption", "history", "question", "answer", "candidates",
    "gt_index", "relevance",
]  # fmt: skip


def run(job: Job) -> None:
    """Write predictions.parquet, metrics.json, gains.json, report.md and plots.

    Raises WrongConfig when the language model is not the checkpoint's, BadInput when nothing can be scored.
    """
    config, notes = job.config, []
    checkpoint = Checkpoint(job)
    check_encoder(job)
    if job.inputs["features"].manifest["encoder"]["random_weights"]:
        notes.append(
            "the encoder has random weights: it tells images and questions apart, but understands none, and "
            "the scores say nothing about ImageBind"
        )
    rows = _rows(job, notes)
    ranked = _to_rank(rows, config.ranking, notes)
    _predict_all(job, checkpoint, rows, ranked, notes)

    found = {system: kept(job, system) for system in SYSTEMS}
    whole = [row for row in rows if all(row["sample"] in found[system] for system in SYSTEMS)]
    if failed := len(rows) - len(whole):
        said = f"{failed} of {len(rows)} samples failed and are not scored"
        if not whole or failed > config.max_failed_share * len(rows):
            raise BadInput(f"{said}: mend them, or raise evaluate.max_failed_share ({config.max_failed_share:g})")
        notes.append(f"{said}; see ledger.parquet")
    items = [
        Item(r["sample"], r["dialogue"], r["turn"], r["question"], r["answer"], r["gt_index"], r["relevance"])
        for r in whole
    ]
    systems = {system: _answers(whole, found[system]) for system in SYSTEMS}
    systems, majority = _with_majority(job, whole, systems, notes)

    scored = score_systems(items, systems, config.protocol, config.meteor)
    scores, gains = summarise(scored, [item.dialogue for item in items], config.resamples, config.seed)
    warnings = notes + warnings_of(items, systems, scores, gains)
    plots = draw_all(items, scored, scores)
    for name, picture in plots.items():
        job.draft.write_bytes(name, picture)
    job.draft.write_table("predictions.parquet", _predictions(items, systems, scored))
    job.draft.write_json("metrics.json", _plain(scores))
    job.draft.write_json("gains.json", _plain(gains))
    search = "greedy" if config.beams == 1 else f"{config.beams} beams"
    context = Context(
        config.split, config.protocol, tokenizer_of(config.protocol), config.resamples, config.seed,
        f"{search}, up to {config.max_new_tokens} tokens", majority, provenance(job, checkpoint),
    )  # fmt: skip
    report = render(context, items, systems, scores, gains, warnings, list(plots))
    job.draft.write_bytes("report.md", report.encode())
    job.about |= {"warnings": warnings, "tokenizer": context.tokenizer, "samples": len(items)}
    for system, metrics in scores.items():
        for name, score in metrics.items():
            job.metric(f"{system}.{name}", score.value)
    for warning in warnings:
        job.log(warning, level="warning")


def _predict_all(
    job: Job,
    checkpoint: Checkpoint,
    rows: Sequence[Mapping[str, Any]],
    ranked: frozenset[str],
    notes: list[str],
) -> None:
    """Fill job.draft.partial with all systems' predictions."""
    shown = permuted([row["media"] for row in rows], job.config.seed)
    if len(shown) == 1:
        notes.append("there is a single image: it cannot be permuted, so that control says nothing")
    features = Features(open_features(job.inputs["features"]), rows)
    transformers.utils.logging.disable_progress_bar()
    model = build_model(checkpoint.config, job.config.llm, job.device, job.config.text_tokenizer)
    total = len(SYSTEMS) * len(rows)
    for place, system in enumerate(SYSTEMS):
        if system == "trained":  # so the first system has seen the model as it was before training
            model.load_trained(checkpoint.weights())
        behind = place * len(rows)
        predict(
            job, model, features, rows, system, ranked, shown if system == "permuted" else None,
            lambda done, behind=behind: job.progress(behind + done, total, "answers"),
        )  # fmt: skip


def _rows(job: Job, notes: list[str]) -> list[dict[str, Any]]:
    """The samples of the split that can be scored, in the table's order; what is left out is noted."""
    split = job.config.split
    found = _read(job.inputs["samples"], split, COLUMNS).to_pylist()
    if not found:
        raise BadInput(f"the samples have no split {split!r}: set evaluate.split, or give ingest its annotations")
    if job.only:
        found = [row for row in found if {row["sample"], row["dialogue"]} & job.only]
        if not found:
            raise BadInput(f"no sample or dialogue of split {split} is named {', '.join(sorted(job.only))}")
    rows, without = [], Counter()
    for row in found:
        lacks = "image" if row["media"] is None else "answer" if row["answer"] is None else None
        if lacks is None:
            rows.append(row)
            continue
        without[lacks] += 1
        for system in SYSTEMS:
            job.ledger.skipped(f"{system}/{row['sample']}", f"has no {lacks}")
    for lacks, n in without.items():
        notes.append(f"{n} of {len(found)} samples of split {split} have no {lacks} and are not scored")
    if not rows:
        raise BadInput(f"nothing to score in split {split}: {'; '.join(notes)}")
    return rows


def _read(samples: Artifact, split: str, columns: list[str]) -> pa.Table:
    """Some columns of one split; no others are held in memory (VisDial's train has 1.2 million rows)."""
    with samples.open("samples.parquet") as file:
        return pq.read_table(file, columns=columns, filters=pc.field("split") == split)


def _to_rank(rows: Sequence[Mapping[str, Any]], ranking: bool | int, notes: list[str]) -> frozenset[str]:
    """The samples whose candidates are ranked: all that have some, none, or so many, spread evenly."""
    if ranking is False:
        return frozenset()
    able = [row["sample"] for row in rows if row["candidates"]]
    if not able:
        notes.append("the samples have no candidates: nothing is ranked")
    if ranking is True or ranking >= len(able):
        return frozenset(able)
    notes.append(f"candidates are ranked for {ranking} of {len(able)} samples, spread evenly")
    return frozenset(able[i] for i in np.linspace(0, len(able) - 1, ranking).round().astype(int))


def _answers(rows: Sequence[Mapping[str, Any]], found: Mapping[str, tuple[str, list[float] | None]]) -> Answers:
    texts, scores = zip(*(found[row["sample"]] for row in rows), strict=True)
    return Answers(list(texts), [None if one is None else np.array(one, np.float32) for one in scores])


def _with_majority(
    job: Job, rows: Sequence[Mapping[str, Any]], systems: dict[str, Answers], notes: list[str]
) -> tuple[dict[str, Answers], str | None]:
    """The systems and the majority control, and its answer."""
    train = _read(job.inputs["samples"], "train", ["answer"])["answer"].drop_null().to_pylist()
    if not train:
        notes.append("the samples have no training answers: the control of the majority answer is left out")
        return systems, None
    answer, counts = majority_answer(train), Counter(map(normalise, train))
    ranked = [scores is not None for scores in systems["trained"].candidates]
    scores = [
        frequency_scores(counts, row["candidates"]) if is_ranked else None
        for row, is_ranked in zip(rows, ranked, strict=True)
    ]
    return systems | {"majority": Answers([answer] * len(rows), scores)}, answer


def _predictions(items: Sequence[Item], systems: Mapping[str, Answers], scored: Mapping[str, Scored]) -> pa.Table:
    """A row a sample; columns `<system>_answer`, `<system>_candidates` (scores) and `<system>_<metric>`."""
    columns: dict[str, Any] = {
        name: [getattr(item, name) for item in items] for name in ("sample", "dialogue", "question", "answer")
    }
    columns["turn"] = pa.array([item.turn for item in items], pa.int8())
    for system, answers in systems.items():
        columns[f"{system}_answer"] = pa.array(answers.texts, pa.string())
        columns[f"{system}_candidates"] = pa.array(answers.candidates, pa.list_(pa.float32()))
        for name, values in scored[system].samples.items():
            name = "rank" if name == "mean_rank" else name  # of one sample it is no mean
            columns[f"{system}_{name}"] = pa.array(values, pa.float64(), from_pandas=True)  # NaN becomes null
    return pa.table(columns)


def _plain(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
    """As JSON has it: null for what is not a number."""
    return {
        system: {
            name: {key: None if math.isnan(value) else value for key, value in asdict(score).items()}
            for name, score in metrics.items()
        }
        for system, metrics in scores.items()
    }
