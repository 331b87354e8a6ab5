"""Names of what TF-slim's layers hold, as `port.tensorflow_files` gives them."""

from port.naming import Names, conv_bn


def conv_norm(ours: str, theirs: str) -> Names:
    """`slim.conv2d` with a batch norm in its scope."""
    return conv_bn(ours, theirs, f"{theirs}.BatchNorm")


def separable(ours: str, theirs: str) -> Names:
    """The two halves of a separable convolution, with a batch norm each."""
    names: Names = {}
    for half, norm in (("depthwise", "depthwise_bn"), ("pointwise", "bn")):
        names[f"{ours}.{half}"] = f"{theirs}_{half}"
        names[f"{ours}.{norm}"] = f"{theirs}_{half}.BatchNorm"
    return names


def block(scope: str, number: int) -> str:
    """A block of one of the MobileNets."""
    return f"{scope}.expanded_conv" + (f"_{number}" if number else "")
