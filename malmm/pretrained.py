"""Pretrained Q-Formers from local files: of LAVIS and MA-LMM, and of transformers' InstructBLIP.

Only tensors are read: .safetensors, or .pth without running what a pickle may hold.
"""

import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

# Where they have the right shape, these are loaded too.
BESIDE = ("llm_proj.", "ln_vision.", "image_pe.")
WORDS = "Qformer.bert.embeddings.word_embeddings.weight"
# transformers' names, and the official ones.
NAMES = (
    (r"^qformer\.", "Qformer.bert."),
    (r"attention\.attention\.", "attention.self."),
    (r"embeddings\.layernorm\.", "embeddings.LayerNorm."),
    (r"^language_projection\.", "llm_proj."),
    (r"^vision_model\.post_layernorm\.", "ln_vision."),
)


@dataclass(frozen=True)
class Loaded:
    """
    What a file gave. loaded: names of the connector's parameters. left: those that keep their initial values, and why.
    unused: what else the file holds, tensors counted by the first part of their names.

    llm_proj is right in front of the language model that it was trained with alone, and no file tells which that was:
    in front of another of the same width it fits, and is no better than a random one.
    """

    loaded: tuple[str, ...]
    left: Mapping[str, str]
    unused: Mapping[str, int]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the connector that were loaded: Qformer, query_tokens, llm_proj, ..."""
        return tuple(dict.fromkeys(name.split(".")[0] for name in self.loaded))


@torch.no_grad()
def load_pretrained(connector: nn.Module, path: str | Path) -> Loaded:
    """
    Loads the Q-Former and its query tokens, and what else of the connector the file has in the right shape, in place.

    ``path``: a .pth or .safetensors file with LAVIS' names (Qformer.bert..., query_tokens, llm_proj..., also below
    "model") or transformers' (qformer.encoder...), or a folder of transformers with model.safetensors, whole or in
    shards. Word embeddings may have one row more than the tokenizer has tokens: LAVIS adds [DEC] to BERT's 30522, which
    no text to a Q-Former contains; its row is left out.
    Raises ValueError, and loads nothing, if the file has no Q-Former or one of other sizes; OSError if it is not there.
    """
    parameters = dict(connector.named_parameters())
    core = {name for name in parameters if name.startswith("Qformer.") or name == "query_tokens"}
    state, rest = _read(Path(path))
    if WORDS in state and len(state[WORDS]) == len(parameters[WORDS]) + 1:
        state[WORDS] = state[WORDS][:-1]
    extra = {n for n in state.keys() - core if n.startswith("Qformer.bert.encoder.")}
    problems = [f"{name}: missing" for name in core - state.keys()]
    problems += [f"{name}: there is no such layer here" for name in extra]
    problems += [
        f"{name}: shape {tuple(state[name].shape)}, expected {tuple(parameters[name].shape)}"
        for name in core & state.keys()
        if state[name].shape != parameters[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"{path}: its Q-Former does not fit: {'; '.join(sorted(problems)[:5])}{more}. {_advice(state, parameters)}"
        )
    left = {}
    for name, parameter in parameters.items():
        if name not in state:
            left[name] = "not in the file"
        elif state[name].shape != parameter.shape:
            left[name] = f"shape {tuple(state[name].shape)} in the file, {tuple(parameter.shape)} here"
        else:
            parameter.copy_(state[name])
    loaded = tuple(name for name in parameters if name not in left)
    unused = Counter(name.split(".")[0] for name in [*rest, *(state.keys() - set(loaded))])
    return Loaded(loaded, left, dict(sorted(unused.items())))


def _advice(state: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> str:
    """What to set, as far as the file tells: widths and layers, not heads."""
    layers = {int(n.split(".")[4]) for n in state if n.startswith("Qformer.bert.encoder.layer.")}
    width = state.get("Qformer.bert.encoder.layer.0.crossattention.self.key.weight")
    if not layers or width is None:
        return "Expected a Q-Former as LAVIS, MA-LMM or InstructBLIP save it (Qformer.bert... or qformer...)"
    crossed = sorted({int(n.split(".")[4]) for n in state if ".crossattention.self.key.weight" in n})
    sizes = {
        "hidden": width.shape[0],
        "layers": len(layers),
        "cross_attention_every": crossed[1] if len(crossed) > 1 else len(layers),
        "encoder_width": width.shape[1],
    }
    text = "The file's: " + ", ".join(f"{name} {value}" for name, value in sizes.items())
    if sizes["hidden"] == 768:
        text += ", heads 12, intermediate 3072, query_tokens 32"
    if WORDS not in state:
        return text + "; it has no text input, which InstructBLIP's and MA-LMM's have"
    if len(state[WORDS]) != len(parameters[WORDS]):
        text += (
            f"; it knows {len(state[WORDS])} words and the text tokenizer {len(parameters[WORDS])}: set text_tokenizer "
            "to the folder of the tokenizer it was trained with (bert-base-uncased, for the official ones)"
        )
    return text


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """What may be of use, by official name, and the names of the rest, which is not read: most of the file."""
    tensors: dict[str, Tensor] = {}
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        names = json.loads(index.read_text())["weight_map"].values() if index.exists() else ["model.safetensors"]
        files = [path / Path(name).name for name in sorted(set(names))]
    elif path.suffix == ".safetensors":
        files = [path]
    else:
        return _picked(_unpickled(path))
    rest: list[str] = []
    for file in files:
        try:
            with safe_open(file, "pt") as held:
                names = {_official(name): name for name in held.keys()}  # noqa: SIM118
                tensors |= {name: held.get_tensor(theirs) for name, theirs in names.items() if _of_use(name)}
                rest += [name for name in names if not _of_use(name)]
        except SafetensorError as error:  # cut short, or a pointer of Git LFS in its place
            raise ValueError(f"{file}: not a whole file of safetensors ({error}): download it again") from None
    return tensors, rest


def _picked(record: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    tensors = {_official(name): t for name, t in record.items() if isinstance(t, Tensor)}
    return {n: t for n, t in tensors.items() if _of_use(n)}, [n for n in tensors if not _of_use(n)]


def _unpickled(path: Path) -> Mapping[str, Any]:
    try:
        record = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path}: not a file of tensors alone ({str(error).splitlines()[0]})") from None
    record = record.get("model", record) if isinstance(record, dict) else {}
    return record if isinstance(record, dict) else {}


def _of_use(name: str) -> bool:
    return name.startswith(("Qformer.bert.", "query_tokens", *BESIDE))


def _official(name: str) -> str:
    name = name.removeprefix("module.").removeprefix("model.")
    for pattern, official in NAMES:
        name = re.sub(pattern, official, name)
    return name
