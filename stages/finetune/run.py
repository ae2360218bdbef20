"""The shell of finetune: samples and embeddings in; checkpoint, state and curves out."""

import importlib.util
import time

import pyarrow as pa
import safetensors.torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed

from malmm.language import Lora
from malmm.model import ModelConfig, MultimodalModel, build_model
from malmm.pretrained import Loaded
from malmm.prompt import Template
from malmm.qformer import QFormerConfig
from stages.contract import Job, WrongConfig
from stages.finetune.config import RECIPES, FinetuneConfig, too_many
from stages.finetune.curves import draw_curves
from stages.finetune.data import TrainingData, dimensions, read_split
from stages.finetune.peers import join
from stages.finetune.schedule import Schedule
from stages.finetune.train import State, train

STATE = "state.safetensors"


def run(job: Job) -> None:
    """
    Write model.safetensors (what trained), config.json (what rebuilds the model), state.safetensors (what training on
    would need), curves.parquet and curves.png. None of them depends on the time or on where things lie.

    With max_steps 0 no sample is read, nothing trains and there are no curves: the weights are those it begins with.
    Where several processes train together, each runs this, and the one that leads writes.

    Raises BadInput for samples without answer, media or embedding; WrongConfig for settings that do not fit together.
    """
    config = job.config
    if job.only:
        raise WrongConfig("finetune trains on a whole split: --only is for stages that work item by item")
    group = join(job.device)
    if group.num_processes > config.accumulate:
        raise WrongConfig(f"finetune: {too_many(group.num_processes, config.accumulate)}")
    job.log(_announcement(config))
    samples, features = job.inputs["samples"], job.inputs["features"]
    data = None if config.max_steps == 0 else read_split(samples, features, config)
    schedule = None if data is None else schedule_of(config, data)
    settings = model_config(config, *(dimensions(features, config.frames) if data is None else data.widths))
    if data is not None and "caption" in settings.template.fields and (n := data.table["caption"].null_count):
        raise WrongConfig(f"finetune.template has {{caption}}, but {n} of {len(data)} samples have none: take it out")
    transformers.utils.logging.disable_progress_bar()
    try:
        model = build_model(settings, config.llm, str(group.device), config.text_tokenizer, config.qformer_weights)
    except ValueError as error:  # a tokenizer without an end, a Q-Former of other sizes
        raise WrongConfig(f"finetune: {error}") from None
    if model.pretrained is not None:
        _tell_pretrained(job, model.pretrained)
    count = sum(p.numel() for p in model.trained_parameters().values())
    if data is None:
        job.log("max_steps is 0: nothing trains, the model is published as it is")
        state = State.untrained(model)
    else:
        by = f", in {group.num_processes} processes" if group.num_processes > 1 else ""
        job.log(f"{count:,} parameters train on {len(data):,} samples, {schedule.steps:,} steps{by}")
        state = _train(job, model, data, schedule)
    job.about |= {"steps": state.step, "parameters": count}
    if job.leads:
        _publish(job, settings, state)


def _tell_pretrained(job: Job, pretrained: Loaded) -> None:
    """Say and keep what came from qformer_weights, and what in it nobody can check."""
    left = [f"{name} ({why})" for name, why in pretrained.left.items()]
    unused = [f"{name} ({count})" for name, count in pretrained.unused.items()]
    job.log(
        f"pretrained: {', '.join(pretrained.parts)} ({len(pretrained.loaded)} tensors); initial values: "
        f"{', '.join(left) or 'none'}; tensors of the file that are not used: {', '.join(unused) or 'none'}"
    )
    job.about["pretrained"] = list(pretrained.parts)
    if "llm_proj" in pretrained.parts:
        job.log(
            "llm_proj came from finetune.qformer_weights, since its shape fits: it means something to the language "
            "model it was trained with alone; make sure that finetune.llm is that one, or train llm_proj",
            level="warning",
        )


def schedule_of(config: FinetuneConfig, data: TrainingData) -> Schedule:
    """When which samples are taken. Raises WrongConfig for a warm-up that outlasts the training."""
    schedule = Schedule(
        data.lengths, config.batch, config.accumulate, config.epochs, config.max_steps, config.lr,
        config.warmup_steps, config.seed,
    )  # fmt: skip
    if schedule.warmup >= schedule.steps:
        raise WrongConfig(
            f"finetune.warmup_steps is {schedule.warmup}, but {len(data)} samples make {schedule.steps} steps: set it "
            "lower, or train longer (finetune.epochs, finetune.max_steps)"
        )
    return schedule


def _train(job: Job, model: MultimodalModel, data: TrainingData, schedule: Schedule) -> State:
    """Train from where an earlier try stood; the ledger gets every sample of the split."""
    config, state = job.config, None
    if job.draft.partial.exists(STATE):
        state = State.of(safetensors.torch.load(job.draft.partial.read_bytes(STATE)))
        job.log(f"taken up at step {state.step:,} of {schedule.steps:,}")
    accelerator = _accelerator(job)
    size, started, seen = config.batch * config.accumulate, time.monotonic(), 0
    total = schedule.steps * size

    def tell(step: int, samples: int, values: dict[str, float]) -> None:
        nonlocal seen
        seen += samples
        accelerator.log(values, step=step)
        job.metric("loss", values["loss"])
        job.progress(step * size, total, "samples")

    def save(state: State) -> None:
        if job.leads:
            job.draft.partial.write_bytes(STATE, safetensors.torch.save(state.tensors()))

    state = train(
        model, data, schedule, accelerator, config.weight_decay, config.grad_clip, state, config.checkpoint_every,
        save, tell,
    )  # fmt: skip
    accelerator.end_training()
    rate = seen / (time.monotonic() - started)
    job.metric("samples_per_second", rate)
    job.about["samples_per_second"] = round(rate, 3)
    for sample in data.table["sample"].to_pylist():
        job.ledger.done(sample)
    for sample, reason in data.skipped.items():
        job.ledger.skipped(sample, reason)
    if data.skipped:
        job.log(f"{len(data.skipped):,} samples of the split went untrained: see ledger.parquet", level="warning")
    return state


def model_config(config: FinetuneConfig, vision_dim: int, text_dim: int) -> ModelConfig:
    """The model's part of the settings. Raises WrongConfig for a template that cannot be."""
    try:
        template = Template(config.template, config.history_template)
    except ValueError as error:
        raise WrongConfig(f"finetune: {error}") from None
    return ModelConfig(
        qformer=QFormerConfig(**config.qformer.model_dump()),
        outputs=config.outputs,
        normalize_inputs=config.normalize_inputs,
        vision_dim=vision_dim,
        text_dim=text_dim,
        memory_bank_length=config.memory_bank_length,
        max_frames=config.max_frames,
        qformer_text=config.qformer_text,
        max_text_tokens=config.max_text_tokens,
        quantization=config.quantization,
        precision=config.precision,
        lora=Lora(**config.lora.model_dump()) if config.lora else None,
        template=template,
        max_prompt_tokens=config.max_prompt_tokens,
        trainable=config.trainable,
        seed=config.seed,
    )


def _announcement(config: FinetuneConfig) -> str:
    """What the recipe sets, and what the config sets otherwise."""
    said = f"recipe {config.recipe}: trains {', '.join(config.trainable)}; outputs {config.outputs}; inputs "
    said += "on one scale" if config.normalize_inputs else "as stored"
    changed = [name for name, preset in RECIPES[config.recipe].items() if getattr(config, name) != preset]
    return said + (f" ({' and '.join(changed)} not the recipe's own)" if changed else "")


def _accelerator(job: Job) -> Accelerator:
    config = job.config
    for name in config.loggers:
        if importlib.util.find_spec(name) is None:
            raise WrongConfig(f"finetune.loggers: {name} is not installed in finetune's environment: install it there, "
                              "or take it out")  # fmt: skip
    accelerator = Accelerator(
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        cpu=job.device == "cpu",
        log_with=list(config.loggers) or None,
        project_dir=config.log_dir,
    )
    if config.loggers:
        accelerator.init_trackers(f"malmm-{job.key[:12]}", config=_plain(config))
    set_seed(config.seed)
    return accelerator


def _publish(job: Job, settings: ModelConfig, state: State) -> None:
    config, sources = job.config, job.sources
    metadata = {"format": "pt"}
    job.draft.write_bytes("model.safetensors", safetensors.torch.save(state.weights, metadata))
    rest = {name: value for name, value in state.tensors().items() if not name.startswith(("weight/", "curve/"))}
    job.draft.write_bytes(STATE, safetensors.torch.save(rest, metadata))
    job.draft.write_json("config.json", {
        "model": settings.to_json(),
        "training": _plain(config),
        "llm_sha256": sources["llm"],
        "text_tokenizer_sha256": sources.get("text_tokenizer"),
        "qformer_weights_sha256": sources.get("qformer_weights"),
    })  # fmt: skip
    if state.step:
        steps = pa.array(range(1, state.step + 1), pa.int32())
        job.draft.write_table("curves.parquet", pa.table({"step": steps, **state.curves}))
        job.draft.write_bytes("curves.png", draw_curves(state.curves))


def _plain(config: FinetuneConfig) -> dict[str, str | int | float | None]:
    """The settings of the training itself: those that the model's part does not hold."""
    names = ("train_split", "epochs", "max_steps", "batch", "accumulate", "lr", "weight_decay", "warmup_steps",
             "grad_clip", "seed", "frames", "frame_choice")  # fmt: skip
    return {name: getattr(config, name) for name in names}
