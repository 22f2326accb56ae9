"""``hf:CLASS``: a model of transformers, built from the configuration that rides in the job.

``job new --model hf:DIR`` reads the folder's ``config.json`` once, and takes what a model is built from: plain values
of keys that this kind of configuration knows. So the other devices need the package, and no folder.

Invariant: nothing is downloaded (no name of a hub is ever looked up), no code of a folder's runs
(``trust_remote_code`` is never given), and a class is one that transformers itself lists for the task.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from p2ptrain.config import DataConfig
from p2ptrain.errors import JobError
from p2ptrain.learning.data.source import PADDING
from p2ptrain.learning.installed.encoder_blocks import in_blocks, is_known
from p2ptrain.learning.installed.vision import check_listed, package
from p2ptrain.learning.own.blame import own_code
from p2ptrain.model_config import ModelConfig

CLASSIFIERS = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
WRITERS = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
FILLERS = "MODEL_FOR_MASKED_LM_MAPPING_NAMES"
WEIGHTS = "model.safetensors"
_NOT_TAKEN = (
    "architectures",
    "attn_implementation",
    "auto_map",
    "backbone",
    "backbone_config",
    "backbone_kwargs",
    "custom_pipelines",
    "dtype",
    "experts_implementation",
    "id2label",
    "label2id",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "quantization_config",
    "return_dict",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "use_pretrained_backbone",
    "use_timm_backbone",
)
"""Of a configuration: what says how it was saved, what the job itself says, and what makes a model load others."""
_LARGEST, _MOST_LAYERS = 2**20, 512
MAX_TEXT = 4096
"""Characters of a configuration in a job, which no string of a job may pass."""
MAX_KEYS, MAX_DEPTH = 200, 3


def of_folder(folder: Path, data: DataConfig) -> tuple[ModelConfig, Path | None]:
    """What a job says of the model in a folder, for such data, and the folder's weights if there are any.

    Raises ``JobError``.
    """
    where = f"hf:{folder}"
    if not data.reads_tokens:
        raise JobError(f"{where}: models of transformers read text here, and the data are {data.kind}: take timm:NAME")
    path = folder / "config.json"
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        kind = given["model_type"]
    except FileNotFoundError:
        raise JobError(
            f"{path}: no such file; save a model there with save_pretrained(), or its configuration: "
            f"transformers.BertConfig().save_pretrained({str(folder)!r})"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(
            f"{path}: no configuration of transformers ({type(error).__name__}: {error}); it is a JSON object with a "
            "model_type"
        ) from None
    known = _known_config(str(kind), where)
    weights = folder / WEIGHTS if (folder / WEIGHTS).is_file() else None
    values = {key: value for key, value in given.items() if key not in _NOT_TAKEN and not key.startswith("_")}
    values = {key: value for key, value in values.items() if key == "model_type" or known.get(key, ...) != value}
    values = {key: value for key, value in values.items() if key == "model_type" or key in known}
    config = json.dumps(_fitted(known | values, values, data, where, weights is not None), sort_keys=True)
    if len(config) > MAX_TEXT:
        raise JobError(f"{path}: what it says beside the defaults has {len(config)} characters; at most {MAX_TEXT}")
    name = f"hf:{_class_for(str(kind), given.get('architectures') or [], data, where)}"
    check(name, config)
    return ModelConfig(name=name, config=config), weights


def check(model: str, config: str) -> None:
    """Whether such a model can be built here. Raises ``JobError``."""
    values = _checked(model, config)
    names = _names()
    listed = {names[table].get(values["model_type"]) for table in (CLASSIFIERS, WRITERS)}
    check_listed(model.partition(":")[2], {name for name in listed if name}, f"transformers' {values['model_type']}")


def build(model: str, config: str, num_classes: int, *, padded: bool) -> nn.Module:
    """Takes [N, 1, 1, T] token numbers, gives logits [N, classes] or [N, T, classes]. Raises ``JobError``.

    ``padded``: whether samples may be shorter than others, and end with ``PADDING``.
    """
    check(model, config)
    values = _checked(model, config)
    transformers: Any = _transformers(f"model {model}")
    with own_code(f"model {model!r} can't be built from the job's model.config", advice="correct the configuration"):
        settings = transformers.AutoConfig.for_model(**values)
        settings.num_labels = num_classes
        settings.use_cache = False
        settings._attn_implementation = "sdpa" if _class(model)._supports_sdpa else "eager"
        built: nn.Module = _class(model)(settings)
        pad = PADDING if padded else None
        if not is_known(built):
            built.register_forward_pre_hook(_Inputs(pad), with_kwargs=True)
        in_blocks(built, pad)
    return built


class _Inputs:
    """From a batch to what these models take: tokens [N, T], and which of them are there at all."""

    def __init__(self, pad: int | None) -> None:
        self._pad = pad

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if len(args) != 1 or not isinstance(args[0], Tensor) or args[0].dim() != 4:
            return None  # as the package's own users call it
        tokens = args[0].flatten(1).long()
        if self._pad is None:
            return (), {**kwargs, "input_ids": tokens}
        there = F.pad((tokens != self._pad)[:, 1:], (1, 0), value=True)  # something is, also of an empty text
        return (), {**kwargs, "input_ids": tokens, "attention_mask": there.long()}


def _transformers(needed_by: str) -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    found = package("transformers", needed_by)
    with contextlib.suppress(ImportError):  # whoever imported it before, own data perhaps, had it read that already
        hub: Any = importlib.import_module("huggingface_hub.constants")
        hub.HF_HUB_OFFLINE = True
    with contextlib.suppress(ImportError):  # native code of a hub, which some models run where a package is there
        kernels = importlib.import_module("transformers.integrations.hub_kernels")
        getattr(kernels, "_HUB_KERNEL_MAPPING", {}).clear()
    return found


def _names() -> Mapping[str, Mapping[str, str]]:
    _transformers("a model of transformers")
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    return {table: getattr(auto, table) for table in (CLASSIFIERS, WRITERS, FILLERS)}


def _class(model: str) -> Any:
    return getattr(_transformers(f"model {model}"), model.partition(":")[2])


def _known_config(kind: str, where: str) -> dict[str, Any]:
    """All keys of a kind of configuration, with their defaults."""
    transformers = _transformers(where)
    names = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    check_listed(kind, names, "transformers")
    known: dict[str, Any] = transformers.AutoConfig.for_model(kind).to_dict()
    return {key: value for key, value in known.items() if key not in _NOT_TAKEN and not key.startswith("_")}


def _class_for(kind: str, architectures: list[Any], data: DataConfig, where: str) -> str:
    """The class of this kind that learns such data: what the folder's model is, where that can."""
    names = _names()
    classifier, writer = names[CLASSIFIERS].get(kind), names[WRITERS].get(kind)
    own = next((name for name in architectures if name and name in (classifier, writer)), None)
    if data.kind == "text" and writer and (own == writer or (own is None and kind not in names[FILLERS])):
        return writer
    if classifier:
        return classifier
    raise JobError(f"{where}: transformers has no classifier of sequences of the kind {kind}; take another kind")


def _fitted(values: Mapping[str, Any], changed: dict[str, Any], data: DataConfig, where: str, saved: bool) -> Any:
    """What differs from the defaults, with room for the data's tokens and length."""
    pad = values.get("pad_token_id")
    if saved and data.kind == "tokens" and pad not in (None, PADDING):
        raise JobError(
            f"{where}: its weights are for texts that are padded with token {pad}, and here they are padded with "
            f"{PADDING}; take a model whose padding is {PADDING}, such as BERT, or the folder without its weights"
        )
    needed = {"vocab_size": data.vocabulary or len(data.classes)}
    places = next((key for key in ("max_position_embeddings", "n_positions") if key in values), "")
    if places:
        # Some models count places from the one after the padding's number.
        spare = 0 if saved else 1 + (PADDING if data.kind == "tokens" else pad or 0)
        needed[places] = data.input_shape[2] + spare
    for key, least in needed.items():
        there = values.get(key)
        if isinstance(there, int) and there < least:
            if saved:
                raise JobError(
                    f"{where}: its weights are for a {key} of {there}, and the data need {least}"
                    + (": --input-shape 1,1,LENGTH makes samples shorter" if key == places else "")
                )
            changed[key] = least
        elif key == "vocab_size" and not saved:
            changed[key] = least  # no weights hang on more
    num_tokens = changed.get("vocab_size", values.get("vocab_size", 0))
    for key in ("bos_token_id", "eos_token_id"):
        if isinstance(token := values.get(key), int) and token >= num_tokens:
            changed[key] = None
    if data.kind == "tokens" and values.get("pad_token_id") != PADDING:
        changed["pad_token_id"] = PADDING
    return changed


def _checked(model: str, config: str) -> dict[str, Any]:
    """The configuration that came with a job: plain values of known keys, none of them absurd. Raises ``JobError``."""
    where = f"model {model}: model.config"
    try:
        values = json.loads(config or "null")
    except (ValueError, RecursionError) as error:
        raise JobError(f"{where} is not JSON ({error}); make the job with job new --model hf:DIR") from None
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise JobError(f"{where} names no model_type; make the job with p2ptrain job new --model hf:DIR")
    known = _known_config(values["model_type"], f"model {model}")
    if unknown := sorted(values.keys() - known.keys() - {"model_type"}):
        raise JobError(f"{where}: {unknown[0][:80]!r} is no key of a {values['model_type']} that is taken here")
    _check_plain(values, where, 0)
    return values


def _check_plain(value: Any, where: str, depth: int) -> None:
    if isinstance(value, (dict, list)):
        if depth >= MAX_DEPTH or len(value) > MAX_KEYS:
            raise JobError(f"{where}: too many values within each other")
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            if depth and isinstance(key, str) and (key in _NOT_TAKEN or key.startswith("_")):
                raise JobError(f"{where}: {key[:80]!r} is not taken here")
            layers = "layer" in str(key) and isinstance(each, int) and each > _MOST_LAYERS
            if layers or (isinstance(each, (int, float)) and not abs(each) <= _LARGEST):
                raise JobError(f"{where}: {str(key)[:80]!r} is {each}, which is absurdly large")
            _check_plain(each, where, depth + 1)
