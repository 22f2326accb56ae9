"""Models of transformers whose padding is another number than here, by a stand-in for the package.

RoBERTa and its like pad with token 1, and count places from the one after that number: so of as many tokens as the data
have, the last ones need places that BERT has no use for.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from p2ptrain.config import DataConfig
from p2ptrain.errors import JobError
from p2ptrain.learning.data.source import PADDING
from p2ptrain.learning.installed import hugging_face
from p2ptrain.learning.installed.encoder_blocks import in_blocks
from p2ptrain.learning.models import model_for

LENGTH = 12
TOKENS = DataConfig(("neg", "pos"), (1, 1, LENGTH), "tokens", (0.0,), (1.0,), vocabulary=256)
TEXT = DataConfig(tuple(map(str, range(256))), (1, 1, LENGTH), "text", (0.0,), (1.0,))
KIND, CLASSIFIER, WRITER = "kin", "KinForSequenceClassification", "KinForCausalLM"
DEFAULTS = {
    "model_type": KIND,
    "vocab_size": 50_265,
    "max_position_embeddings": 8,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


class Settings(types.SimpleNamespace):
    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class KinForSequenceClassification(nn.Module):
    """Counts places as RoBERTa does."""

    _supports_sdpa = True

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.pad = settings.pad_token_id
        self.words = nn.Embedding(settings.vocab_size, 4)
        self.places = nn.Embedding(settings.max_position_embeddings, 4)
        self.head = nn.Linear(4, settings.num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = attention_mask.cumsum(1) * attention_mask + self.pad
        return self.head((self.words(input_ids) + self.places(places)).mean(1))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    made = {
        "transformers": {
            "AutoConfig": types.SimpleNamespace(for_model=lambda model_type, **values: Settings(**DEFAULTS | values)),
            CLASSIFIER: KinForSequenceClassification,
        },
        "transformers.models.auto.configuration_auto": {"CONFIG_MAPPING_NAMES": {KIND: "KinConfig"}},
        "transformers.models.auto.modeling_auto": {
            hugging_face.CLASSIFIERS: {KIND: CLASSIFIER},
            hugging_face.WRITERS: {KIND: WRITER},
            hugging_face.FILLERS: {KIND: "KinForMaskedLM"},
        },
    }
    for name, contents in made.items():
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)


def folder(path: Path, *, weights: bool, **settings: object) -> Path:
    (path / "config.json").write_text(json.dumps({"model_type": KIND} | settings))
    if weights:
        (path / hugging_face.WEIGHTS).write_bytes(b"some")
    return path


def test_weights_for_another_padding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"padded with token 1, .* padded with 0; take .* folder without its weights"):
        hugging_face.of_folder(folder(tmp_path, weights=True, max_position_embeddings=514), TOKENS)


@pytest.mark.parametrize(("data", "pad"), [(TOKENS, PADDING), (TEXT, 1)], ids=["their padding is ours", "no padding"])
def test_weights_that_fit_are_taken_as_they_are(tmp_path: Path, data: DataConfig, pad: int) -> None:
    """Bytes of a text are never padded, so it does not matter what the model pads with."""
    saved = folder(tmp_path, weights=True, max_position_embeddings=512, pad_token_id=pad)
    chosen, weights = hugging_face.of_folder(saved, data)
    assert weights == tmp_path / hugging_face.WEIGHTS
    told = json.loads(chosen.config)
    assert told["max_position_embeddings"] == 512 and told.get("pad_token_id", 1) == pad and "vocab_size" not in told


def test_weights_with_too_few_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"max_position_embeddings of 8, and the data need 12: --input-shape"):
        hugging_face.of_folder(folder(tmp_path, weights=True, pad_token_id=PADDING), TOKENS)


def test_without_weights_the_padding_is_ours_and_the_last_token_has_a_place(tmp_path: Path) -> None:
    chosen, weights = hugging_face.of_folder(folder(tmp_path, weights=False), TOKENS)
    told = json.loads(chosen.config)
    assert weights is None and chosen.name == f"hf:{CLASSIFIER}"
    assert (told["pad_token_id"], told["vocab_size"]) == (PADDING, 256)
    assert told["max_position_embeddings"] == LENGTH + 1, "from the one after the padding's number"
    model = model_for(chosen.name, TOKENS, config=chosen.config)
    x = torch.randint(1, 256, (3, 1, 1, LENGTH))
    x[1, ..., 4:] = PADDING
    assert model(x).shape == (3, 2)
    told["max_position_embeddings"] -= 1
    with pytest.raises(IndexError):  # with none to spare, the last of a whole text has none
        model_for(chosen.name, TOKENS, config=json.dumps(told))(x)


def test_where_nothing_is_padded_there_are_places_from_the_models_own_padding_on(tmp_path: Path) -> None:
    own = folder(tmp_path, weights=False, architectures=[WRITER])
    chosen, _ = hugging_face.of_folder(own, TEXT)
    told = json.loads(chosen.config)
    assert chosen.name == f"hf:{WRITER}" and "pad_token_id" not in told
    assert told["max_position_embeddings"] == LENGTH + 1 + 1


def test_an_encoder_that_is_set_to_be_a_decoder_is_not_cut_as_one() -> None:
    class BertForSequenceClassification(nn.Module):
        config = types.SimpleNamespace(is_decoder=True)

    model = BertForSequenceClassification()
    in_blocks(model, None)
    with pytest.raises(JobError, match="as encoders; train it in mode"):
        model.pipeline_blocks()
