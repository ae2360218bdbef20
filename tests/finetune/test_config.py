import pytest
from pydantic import ValidationError

from stages.finetune.config import FinetuneConfig


def test_a_recipe_sets_what_the_config_does_not():
    seed = FinetuneConfig(recipe="seed", llm="x")
    assert seed.trainable == ("imagebind_fc", "turn_pe") and seed.outputs == "all"
    mixed = FinetuneConfig(recipe="seed", llm="x", outputs="queries")
    assert mixed.trainable == seed.trainable and mixed.outputs == "queries"
    assert "qformer" in FinetuneConfig(llm="x").trainable


def test_the_recipe_enters_the_key_by_what_it_sets_alone():
    spelled = FinetuneConfig(
        recipe="connector", llm="x", trainable=["imagebind_fc", "turn_pe"], outputs="all", normalize_inputs=False
    )
    assert spelled.key_fields() == FinetuneConfig(recipe="seed", llm="y").key_fields()
    assert not {"llm", "text_tokenizer", "processes"} & set(spelled.key_fields())
    assert set(spelled.source_paths()) == {"llm"}
    assert set(FinetuneConfig(llm="x", text_tokenizer="t").source_paths()) == {"llm", "text_tokenizer"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"trainable": ["everything"]}, "imagebind_fc"),
        ({"trainable": ["lora"]}, "exactly when lora is set"),
        ({"qformer": {"hidden": 10, "heads": 4}}, "not a multiple of heads"),
        ({"max_steps": 5, "warmup_steps": 5}, "must be below max_steps"),
        ({"recipe": "other"}, "'connector', 'seed' or 'malmm'"),
        ({"recipe": "malmm", "frames": 4}, "only with memory banks"),
        ({"memory_bank_length": 3}, "set frames too"),
        ({"max_text_tokens": 513}, "more than qformer.max_positions 512"),
        ({"memory_bank_length": 3, "frames": 130}, "more than max_frames 120"),
        ({"processes": 4, "accumulate": 3}, "4 processes, but accumulate is 3"),
        ({"epoch": 3}, "Extra inputs"),
    ],
)
def test_what_cannot_be_is_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        FinetuneConfig(llm="x", **fields)
