"""The data contract of a job: what every device's samples are read as, and in which order the classes are.

Invariant: plain values; whether they go together is checked with the whole job.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

DataKind = Literal["image", "audio", "text", "tokens"]


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """How recordings become log-mel images: ``[1, num_mels, num_frames]``."""

    sample_rate: int = 8000
    seconds: float = 1.0
    window_s: float = 0.032
    hop_s: float = 0.016
    num_mels: int = 40


@dataclass(frozen=True, slots=True)
class DataConfig:
    """The data contract: class names in order, input shape ``(channels, height, width)``, normalisation per channel."""

    classes: tuple[str, ...] = ()
    input_shape: tuple[int, ...] = ()
    kind: DataKind = "image"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: bool = False
    """Random crops and flips (images) or shifts (audio) while training."""
    light: bool = False
    """Where samples are augmented: pictures are only mirrored, recordings only shifted. That suits narrow models."""
    audio: AudioConfig = field(default_factory=AudioConfig)
    val: float = 0.1
    """Share of the training samples held out for validation, where the data set has no validation split of its own; 0 =
    none."""
    white: float = 0.0
    """White in pictures of more than 8 bits a channel, or of floats; 0 = 65535, all of 16 bits."""
    vocabulary: int = 0
    """Of tokens: every one is a number below this. Of text it is 256, as its tokens are bytes."""
    transform: str = ""
    """``package.module:function`` of somebody's own, that changes samples while training; "" = none."""
    LATER_KEYS: ClassVar[tuple[str, ...]] = ("white", "light", "vocabulary", "transform")

    @property
    def changes_samples(self) -> bool:
        """Whether samples are other ones each time that they are trained on."""
        return self.augment or bool(self.transform)

    @property
    def reads_tokens(self) -> bool:
        """Whether samples are ``[1, 1, length]`` whole numbers, not pixels or what is like them."""
        return self.kind in ("text", "tokens")
