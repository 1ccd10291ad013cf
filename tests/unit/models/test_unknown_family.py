import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from fedpft.config import ConfigError, FMConfig, LoraConfig
from fedpft.construct.compress import compress
from fedpft.models.families import FFN_LOCATIONS
from fedpft.models.loading import load_fm_config, record_ffn_sizes
from fedpft.models.lora import attach_lora
from tests.tiny import tiny_fm

ALLOWED = (
    f" of model type 'albert', allowed: {', '.join(sorted(FFN_LOCATIONS))} "
    "(a new one is a row in FFN_LOCATIONS of fedpft/models/families.py "
    "and one in LORA_TARGETS of lora_targets.py beside it)"
)


@pytest.fixture(scope="module")
def albert():
    """Return a model whose layers share their weights, which is why it has no row."""
    config = AutoConfig.for_model(
        "albert", hidden_size=8, embedding_size=8, num_attention_heads=1, intermediate_size=8, vocab_size=8
    )
    return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize(
    "enter",
    [
        lambda model: compress(model, retained_ratio=0.5),
        lambda model: attach_lora(model, LoraConfig(), seed=0),
        lambda model: attach_lora(model, LoraConfig(target_modules=("query",)), seed=0),
        record_ffn_sizes,
    ],
    ids=["compress", "lora", "lora with targets", "record sizes"],
)
def test_a_model_of_an_unknown_family_is_refused_with_one_line(albert, enter):
    with pytest.raises(ConfigError) as error:
        enter(albert)
    assert str(error.value) == f"fm.path: found AlbertModel{ALLOWED}"


def test_a_folder_of_an_unknown_family_is_refused_with_the_same_line_before_its_weights_are_read(albert, tmp_path):
    albert.config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_fm_config(FMConfig(path=str(tmp_path)), num_labels=2)
    assert str(error.value) == f"fm.path: found {str(tmp_path)!r}{ALLOWED}"


def test_an_unknown_family_from_scratch_is_refused_with_the_same_line():
    with pytest.raises(ConfigError) as error:
        load_fm_config(FMConfig(path="scratch://albert"), num_labels=2)
    assert str(error.value) == f"fm.path: found 'scratch://albert'{ALLOWED}"


def test_a_known_family_passes_every_door():
    fm = tiny_fm("electra")
    record_ffn_sizes(fm)
    attach_lora(compress(fm, retained_ratio=0.5)[0], LoraConfig(), seed=0)
