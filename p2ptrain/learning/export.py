"""A trained model for use elsewhere: ``pt2`` (torch.export) and ``onnx``, both for any batch size.

Invariant: what is exported is the model in eval mode, and gives its outputs to float tolerance.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from p2ptrain.errors import UserError

Format = Literal["pt2", "onnx"]
ONNX_OPSET = 18
ONNX_PACKAGES = ("onnx", "onnxscript")


def export_model(model: nn.Module, input_shape: Sequence[int], path: Path, kind: Format) -> None:
    """Write ``model`` (inputs [batch, *input_shape]) to ``path``; whole or not at all."""
    if kind == "onnx":
        missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"export to ONNX needs {' and '.join(missing)}; run: pip install {' '.join(ONNX_PACKAGES)}")
    was_training = model.training
    model.eval()
    example = (torch.zeros(2, *input_shape),)  # two, because torch.export makes sizes 0 and 1 constants
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    try:
        with torch.no_grad(), tempfile.TemporaryDirectory(prefix=".export-", dir=_directory(path)) as folder:
            part = Path(folder) / path.name
            if kind == "pt2":
                # torch.export.save wants the suffix
                part = part.with_suffix(".pt2")
                torch.export.save(torch.export.export(model, example, dynamic_shapes=shapes), part)
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
            os.replace(part, path)
    except (torch._dynamo.exc.TorchDynamoException, torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the model can't be exported to {kind} ({reason}); take control flow that depends on tensor values out of "
            "its forward, or use the .safetensors file"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: can't write the export ({error}); give a path on a disk with room for it") from None
    finally:
        model.train(was_training)


def _directory(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent
