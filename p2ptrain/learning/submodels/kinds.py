"""What kinds of layers and functions there are, by what they do to channels.

Invariant: what is not named here is not understood, and a model that uses it is refused.
"""

from __future__ import annotations

import inspect

from torch import fx, nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHANNEL_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
KINDS = {
    name: kind
    for kind, names in {
        # Every element on its own; with several tensors, element by element.
        "elementwise": """
            ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Sigmoid Tanh Softplus
            Softsign LogSigmoid Threshold RReLU Dropout Dropout1d Dropout2d Dropout3d AlphaDropout
            FeatureAlphaDropout Hardshrink Softshrink Tanhshrink Identity
            relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh softplus
            softsign logsigmoid threshold rrelu dropout dropout1d dropout2d dropout3d alpha_dropout
            feature_alpha_dropout exp log abs sqrt rsqrt square neg pow clamp clamp_min clamp_max clone contiguous
            detach to float double half bfloat16 sin cos erf reciprocal add sub mul truediv div divide multiply
            subtract iadd imul isub itruediv maximum minimum""",
        # Every channel on its own, over the axes after the channel axis.
        "spatial": """
            MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d AdaptiveAvgPool1d
            AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d Upsample
            ZeroPad1d ZeroPad2d ReflectionPad1d ReflectionPad2d ReplicationPad1d ReplicationPad2d
            max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d
            adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
            adaptive_max_pool3d interpolate pad""",
        "reduce": "mean sum amax amin std var",
        "softmax": "Softmax LogSoftmax softmax log_softmax",
        # Moves elements about: carried out on the tags themselves.
        "move": """
            Flatten Unflatten flatten unflatten view reshape permute transpose swapaxes movedim unsqueeze squeeze
            expand getitem getattr size dim cat concat concatenate stack chunk split unbind narrow select flip""",
    }.items()
    for name in names.split()
}
# After the head the logits may only be moved about and averaged: the fold into the head needs a linear tail.
LINEAR_TAIL = frozenset(
    """
    Flatten flatten view reshape squeeze getitem contiguous mean AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d
    AdaptiveAvgPool2d AdaptiveAvgPool3d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d Identity
    """.split()  # noqa: SIM905
)


def name_of(node: fx.Node) -> str:
    """The function or method that a node calls, as ``KINDS`` has it."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.strip("_") if not inspect.isclass(node.target) else name
