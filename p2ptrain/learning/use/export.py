"""A trained model for use elsewhere: ``pt2`` (torch.export) and ``onnx``, both for any batch size.

Invariant: what is exported is the model in eval mode, and gives its outputs to float tolerance.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from p2ptrain.errors import UserError
from p2ptrain.lasting import in_place_of
from p2ptrain.learning.checkpoint import ModelCard
from p2ptrain.learning.models import MODEL_BUGS
from p2ptrain.learning.own.building import READS_TOKENS

Format = Literal["pt2", "onnx"]
_OF_MODELS = tuple(kind for kind in MODEL_BUGS if kind is not OSError)
ONNX_OPSET = 18
EXTRA_FILE = "p2ptrain.json"
ONNX_PACKAGES = ("onnx", "onnxscript")


def about(card: ModelCard) -> dict[str, str]:
    """What whoever runs an exported model has to know: classes in the order of the outputs, and how inputs are made.

    Inputs are less ``mean``, over ``std`` by channel, of values from 0 to 1; lists are JSON.
    """
    data = card.data
    return {
        "model": card.model,
        "job_id": card.job_id,
        "kind": data.kind,
        "classes": json.dumps(data.classes, ensure_ascii=False),
        "input_shape": json.dumps(data.input_shape),
        "mean": json.dumps(data.mean),
        "std": json.dumps(data.std),
        **({"vocabulary": json.dumps(data.vocabulary)} if data.kind == "tokens" else {}),
        **({"audio": json.dumps(dataclasses.asdict(data.audio))} if data.kind == "audio" else {}),
    }


def export_model(
    model: nn.Module, input_shape: Sequence[int], path: Path, kind: Format, metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``model`` (inputs [batch, *input_shape]) to ``path``; whole or not at all.

    ``metadata`` rides along: in onnx as metadata properties, in pt2 as the extra file ``p2ptrain.json``.
    """
    known = dict(metadata or {})
    if kind == "onnx":
        missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"export to ONNX needs {' and '.join(missing)}; run: pip install {' '.join(ONNX_PACKAGES)}")
    was_training = model.training
    model.eval()
    dtype = torch.int64 if getattr(model, READS_TOKENS, False) else torch.float32
    example = (torch.zeros(2, *input_shape, dtype=dtype),)  # two, because torch.export makes sizes 0 and 1 constants
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    try:
        with (
            torch.no_grad(),
            tempfile.TemporaryDirectory(prefix=".export-", dir=_directory(path)) as folder,
            in_place_of(path) as beside,
        ):
            part = Path(folder) / path.name
            if kind == "pt2":
                # torch.export.save wants the suffix
                part = part.with_suffix(".pt2")
                extra = {EXTRA_FILE: json.dumps(known, ensure_ascii=False)} if known else None
                torch.export.save(torch.export.export(model, example, dynamic_shapes=shapes), part, extra_files=extra)
            else:
                torch.onnx.export(
                    model,
                    example,
                    part,
                    dynamo=True,
                    dynamic_shapes=shapes,
                    input_names=["input"],
                    output_names=["logits"],
                    opset_version=ONNX_OPSET,
                    external_data=False,
                    verbose=False,
                )
                _put_into_onnx(part, known)
            os.replace(part, beside)
    except (torch._dynamo.exc.TorchDynamoException, torch.onnx.errors.OnnxExporterError, *_OF_MODELS) as error:
        raise UserError(f"the model can't be exported to {kind}: {_reason(error, kind)}") from error
    except OSError as error:
        raise UserError(f"{path}: can't write the export ({error}); give a path on a disk with room for it") from None
    finally:
        model.train(was_training)


def _put_into_onnx(path: Path, metadata: Mapping[str, str]) -> None:
    import onnx

    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, dict(metadata))
    onnx.save(proto, path)


def _reason(error: BaseException, kind: Format) -> str:
    """What the exporter itself says, at the root of what it wrapped it in, and what to do about that."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    said = [line.strip() for line in str(chain[-1]).splitlines() if line.strip()]
    reason = (said[0] if said else type(chain[-1]).__name__)[:300].rstrip(".")
    text = "\n".join(map(str, chain))
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text)
    if missing is not None:
        operator = missing[1].replace("aten.", "")
        return f"ONNX has no {operator} ({reason}); take another layer in its place, or export to pt2"
    if any(word in text for word in ("data-dependent", "Dynamic control flow", "GuardOnDataDependent", "Unsupported")):
        return f"{reason}; take control flow that depends on tensor values out of its forward"
    other = "pt2" if kind == "onnx" else "onnx"
    return f"{reason}; try --format {other}, or use the .safetensors file"


def _directory(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent
