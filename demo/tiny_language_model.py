"""A random Llama of 64 dimensions and a byte-level BPE tokenizer, for the smoke flow and the tests.

python -m demo.tiny_language_model TARGET
"""

import sys
from pathlib import Path


def write_tiny_llm(folder: Path, hidden: int = 64) -> Path:
    """Writes config.json, model.safetensors and the tokenizer into ``folder``; the same bytes each time."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = [
        "Caption: a red circle on a blue ground",
        "Question: what colour is the circle?",
        "Answer: yes no red blue",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=tokenizer.get_vocab_size(),
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                initializer_range=0.3,  # far from uniform, so that a wrong mask or position shows
                bos_token_id=tokenizer.token_to_id("<s>"),
                eos_token_id=tokenizer.token_to_id("</s>"),
            )
        )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors keeps it to its owner; a container's user reads it too
    return folder


if __name__ == "__main__":
    if not Path(sys.argv[1], "config.json").exists():
        write_tiny_llm(Path(sys.argv[1]))
