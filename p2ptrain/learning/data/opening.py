"""From what a person names to an open data set: ``images:photos/``, ``npz:samples.npz``, ``digits``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from p2ptrain.errors import DataError
from p2ptrain.learning.data import binary, folders, npz, text
from p2ptrain.learning.data.given import hugging_face, own
from p2ptrain.learning.data.source import Source, closest

SCHEMES: dict[str, str] = {
    "digits": "digits (scikit-learn's 8x8 digits)",
    "idx": "idx:DIR (MNIST family)",
    "cifar": "cifar:DIR (CIFAR-10 or CIFAR-100, binary version)",
    "cifar-coarse": "cifar-coarse:DIR (CIFAR-100's 20 coarse classes, binary version)",
    "images": "images:DIR_OR_ZIP (one folder a class)",
    "audio": "audio:DIR_OR_ZIP (WAV files, one folder a class)",
    "npz": "npz:FILE (x_train, y_train, x_val, y_val, x_test, y_test)",
    "text": "text:FILE (any file, read byte by byte)",
    "hf": "hf:DIR (what save_to_disk of Hugging Face's datasets wrote)",
}


def open_source(spec: str) -> Source:
    """Open the data set that ``spec`` names. Raises ``DataError`` naming the file and what was expected."""
    scheme, _, rest = spec.partition(":")
    openers: dict[str, Callable[[str, Path], Source]] = {
        "idx": binary.open_idx,
        "cifar": binary.open_cifar,
        "cifar-coarse": binary.open_cifar_coarse,
        "npz": npz.open_npz,
        "images": folders.open_images,
        "audio": folders.open_audio,
        "text": text.open_text,
        "hf": hugging_face.open_saved,
    }
    if scheme == "digits":
        if rest:
            raise DataError(f"{spec}: digits takes no path; write just digits")
        return binary.open_digits(spec)
    if scheme not in openers and own.is_function(spec):
        return own.open_own(spec)
    if scheme not in openers:
        hint = closest(scheme, SCHEMES)
        if not hint and ("/" in spec or "\\" in spec or "." in spec):
            hint = f"; did you mean images:{spec} or audio:{spec}?"
        known = f"{', '.join(SCHEMES.values())}, or your own as package.module:function"
        raise DataError(f"{spec}: unknown kind of data set{hint}; known: {known}")
    if not rest or "\0" in rest:
        raise DataError(f"{spec}: expected {SCHEMES[scheme]}")
    try:
        path = Path(rest).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~someone without a home
        raise DataError(f"{rest}: can't be read ({error}); expected {SCHEMES[scheme]}") from None
    if not exists:
        raise DataError(f"{path}: no such file or folder; expected {SCHEMES[scheme]}")
    return openers[scheme](spec, path)
