"""The shell of evaluate: samples, embeddings and a checkpoint in; predictions, scores and a report out."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import transformers

from malmm.model import build_model
from stages.contract import BadInput, Job, TryAgain
from stages.evaluate.bootstrap import Score
from stages.evaluate.checkpoint import Checkpoint, check_encoder, provenance
from stages.evaluate.controls import frequency_scores, majority_answer, majority_classes
from stages.evaluate.features import Features, permuted_segments
from stages.evaluate.items import Row, item_of, read_items, read_split, segment_of
from stages.evaluate.plots import draw_all
from stages.evaluate.predict import SYSTEMS, answered, answers_of, batches_of, kept, predict
from stages.evaluate.report import Context, render, warnings_of
from stages.evaluate.scoring import Answers, Item, Scored, score_systems, summarise
from stages.evaluate.text_metrics import normalise


def run(job: Job) -> None:
    """Write predictions.parquet, metrics.json, gains.json, report.md and plots. A part only answers its samples.

    Raises WrongConfig when the language model is not the checkpoint's, or the samples are not of what it was trained
    on; BadInput when nothing can be scored, or more than max_failed_share failed.
    """
    config, notes = job.config, []
    checkpoint = Checkpoint(job)
    check_encoder(job)
    if job.inputs["features"].manifest["encoder"]["random_weights"]:
        notes.append(
            "the encoder has random weights: it tells images and questions apart, but understands none, and "
            "the scores say nothing about ImageBind"
        )
    model_systems = SYSTEMS
    if checkpoint.zero_shot:
        model_systems = tuple(system for system in SYSTEMS if system != "untrained")
        notes.append(
            "zero-shot: the checkpoint was not trained (max_steps 0), so there is no model before training; and its "
            "imagebind_fc has random weights, which no pretrained Q-Former brings, so what is shown reaches the "
            "language model garbled: read it beside the permuted control"
        )
    rows = read_items(job, checkpoint, model_systems, notes)
    task, kind = rows[0]["task"], rows[0]["media_kind"]
    features = Features(job.inputs["features"], rows, checkpoint.frames, config.frame_rounding)
    total, rows = len(rows), _shown(job, rows, features, model_systems, notes)
    ranked = frozenset() if task == "caption" else _to_rank(rows, config.ranking, notes)
    _predict_all(job, checkpoint, features, rows, ranked, model_systems, notes)
    if not job.whole:
        return

    found = {system: kept(job, system) for system in model_systems}
    whole = [row for row in rows if all(row["sample"] in found[system] for system in model_systems)]
    if len(whole) < len(rows):
        _allow(job, len(rows) - len(whole), total, f"failed ({_first_failure(job)})", notes, total - len(rows))
    items = [item_of(row) for row in whole]
    systems = {system: answers_of([found[system][row["sample"]] for row in whole]) for system in model_systems}
    systems, majority = _with_majority(job, whole, systems, notes)

    scored = score_systems(items, systems, task, config.protocol, config.meteor, config.spice)
    scores, gains = summarise(scored, [item.dialogue for item in items], config.resamples, config.seed)
    context = Context(
        task, kind, config.split, config.protocol, config.resamples, config.seed, _generation(job, checkpoint),
        majority, checkpoint.zero_shot, provenance(job, checkpoint),
    )  # fmt: skip
    warnings = notes + warnings_of(context, items, systems, scores, gains)
    plots = draw_all(items, scored, scores, context.names, task)
    for name, picture in plots.items():
        job.draft.write_bytes(name, picture)
    job.draft.write_table("predictions.parquet", _predictions(items, systems, scored))
    job.draft.write_json("metrics.json", _plain(scores))
    job.draft.write_json("gains.json", _plain(gains))
    report = render(context, items, systems, scores, gains, warnings, list(plots))
    job.draft.write_bytes("report.md", report.encode())
    job.about |= {"warnings": warnings, "task": task, "samples": len(items)}
    if context.tokenizer is not None:
        job.about["tokenizer"] = context.tokenizer
    for system, metrics in scores.items():
        for name, score in metrics.items():
            if "/" not in name:  # hundreds of classes are for the table, not for the log
                job.metric(f"{system}.{name}", score.value)
    for warning in warnings:
        job.log(warning, level="warning")


def _shown(job: Job, rows: Sequence[Row], features: Features, systems: Sequence[str], notes: list[str]) -> list[Row]:
    """The rows whose media is embedded; the others go to the ledger with the reason, if max_failed_share lets them."""
    problems = {row["sample"]: problem for row in rows if (problem := features.problem(row)) is not None}
    if problems:
        first = "; ".join(f"{sample}: {problem}" for sample, problem in list(problems.items())[:3])
        _allow(job, len(problems), len(rows), f"cannot be shown ({first})", notes)
        for sample, problem in problems.items():
            for system in systems if job.mine(sample) else ():
                job.ledger.skipped(f"{system}/{sample}", problem)
    return [row for row in rows if row["sample"] not in problems]


def _allow(job: Job, failed: int, total: int, how: str, notes: list[str], before: int = 0) -> None:
    """Note that so many items are not scored. Raises BadInput when they, and those ``before``, are more than
    max_failed_share."""
    said, share = f"{failed} of {total} samples {how} and are not scored", job.config.max_failed_share
    if failed + before == total or failed + before > share * total:
        more = f", after {before} that cannot be shown" if before else ""
        raise BadInput(f"{said}{more}: mend them, or raise evaluate.max_failed_share ({share:g})")
    notes.append(f"{said}; see ledger.parquet")


def _first_failure(job: Job) -> str:
    """The first failed item and its cause. Raises TryAgain when none failed, and answers are missing all the same."""
    failed = job.ledger.table().filter(pc.field("status") == "failed").slice(0, 1).to_pylist()
    if not failed:
        raise TryAgain("answers that were saved are gone: another run makes the same report; let one run at a time")
    return f"{failed[0]['id']}: {failed[0]['message']}"


def _predict_all(
    job: Job,
    checkpoint: Checkpoint,
    features: Features,
    rows: Sequence[Row],
    ranked: frozenset[str],
    systems: Sequence[str],
    notes: list[str],
) -> None:
    """Fill job.draft.partial with all systems' predictions of this run's batches; no model is built for none."""
    shown = permuted_segments(map(segment_of, rows), job.config.seed)
    if len({row["media"] for row in rows}) == 1:
        kind = rows[0]["media_kind"]
        notes.append(f"there is a single {kind}: it cannot be permuted, so that control says nothing")
    batches = batches_of(job, rows)
    own = {row["sample"] for batch in batches for row in batch}
    before = {system: own & answered(job, system) for system in systems}
    for system, samples in before.items():
        for sample in samples:
            job.ledger.kept(f"{system}/{sample}")
    total, behind = len(systems) * len(own), 0
    if sum(map(len, before.values())) == total:
        return
    transformers.utils.logging.disable_progress_bar()
    config = job.config
    model = build_model(checkpoint.config, config.llm, job.device, config.text_tokenizer, config.qformer_weights)
    for system in systems:
        if system == "trained":  # so the first system has seen the model as it was before training
            model.load_trained(checkpoint.weights())
        predict(
            job, model, features, batches, system, before[system], ranked, shown if system == "permuted" else None,
            lambda done, behind=behind: job.progress(behind + done, total, "answers"),
        )  # fmt: skip
        behind += len(own)


def _generation(job: Job, checkpoint: Checkpoint) -> str:
    """How the answers came about, in words."""
    config, model = job.config, checkpoint.config
    search = "greedy" if config.beams == 1 else f"{config.beams} beams, length penalty {config.length_penalty:g}"
    least = f"{config.min_new_tokens} to " if config.min_new_tokens else "up to "
    said = f"{search}, {least}{config.max_new_tokens} tokens"
    if checkpoint.frames is None:
        return said
    memory = f"memory bank of {model.memory_bank_length}" if model.memory_bank_length else "no memory bank"
    way = "to the nearest" if config.frame_rounding == "nearest" else "down"
    return f"{said}; {checkpoint.frames} frames of each video, evenly spaced, rounded {way}, {memory}"


def _to_rank(rows: Sequence[Mapping[str, Any]], ranking: bool | int, notes: list[str]) -> frozenset[str]:
    """The samples whose candidates are ranked: all that have some, none, or so many, spread evenly."""
    if ranking is False:
        return frozenset()
    able = [row["sample"] for row in rows if row["candidates"]]
    if not able and rows[0]["task"] == "dialogue":  # other sets have none, or classes
        notes.append("the samples have no candidates: nothing is ranked")
    if ranking is True or ranking >= len(able):
        return frozenset(able)
    notes.append(f"candidates are ranked for {ranking} of {len(able)} samples, spread evenly")
    return frozenset(able[i] for i in np.linspace(0, len(able) - 1, ranking).round().astype(int))


def _with_majority(
    job: Job, rows: Sequence[Row], systems: dict[str, Answers], notes: list[str]
) -> tuple[dict[str, Answers], str | None]:
    """The systems and the majority control, and its answer."""
    train = read_split(job.inputs["samples"], "train", ["answer"])["answer"].drop_null().to_pylist()
    if not train:
        notes.append("the samples have no training answers: the control of the majority answer is left out")
        return systems, None
    # A class is its name; an answer may be spelled in several ways.
    answer = majority_classes(train, 1)[0] if rows[0]["task"] == "classification" else majority_answer(train)
    counts, n = Counter(map(normalise, train)), len(rows)
    trained = systems["trained"]
    scores = [
        None if ranked is None else frequency_scores(counts, row["candidates"])
        for row, ranked in zip(rows, trained.candidates, strict=True)
    ]
    beams = None if trained.beams is None else [majority_classes(train, len(trained.beams[0]))] * n
    constrained = None if trained.constrained is None else [answer] * n
    return systems | {"majority": Answers([answer] * n, scores, beams, constrained)}, answer


def _predictions(items: Sequence[Item], systems: Mapping[str, Answers], scored: Mapping[str, Scored]) -> pa.Table:
    """A row an item; columns `<system>_answer`, `<system>_candidates` (scores) and `<system>_<metric>`.

    `answer` is the first of the item's references. A classification has `<system>_beams`, `<system>_constrained` too.
    """
    columns: dict[str, Any] = {
        name: [getattr(item, name) for item in items] for name in ("sample", "dialogue", "question", "answer")
    }
    columns["references"] = pa.array([list(item.references) for item in items], pa.list_(pa.string()))
    columns["category"] = pa.array([item.category for item in items], pa.string())
    columns["turn"] = pa.array([item.turn for item in items], pa.int8())
    for system, answers in systems.items():
        columns[f"{system}_answer"] = pa.array(answers.texts, pa.string())
        columns[f"{system}_candidates"] = pa.array(answers.candidates, pa.list_(pa.float32()))
        if answers.beams is not None:
            columns[f"{system}_beams"] = pa.array(answers.beams, pa.list_(pa.string()))
        if answers.constrained is not None:
            columns[f"{system}_constrained"] = pa.array(answers.constrained, pa.string())
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
