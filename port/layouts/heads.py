"""Names of heads that several layouts share."""

from port.naming import Names, conv_bn


def aspp_names(*, branches: int, separable: str | None = None) -> Names:
    """ASPP as torchvision names it: `convs.{0..4}` and `project`.

    Args:
      branches: convolutions in it, the 1x1 included and image pooling not.
      separable: where the two halves of a separable branch are: "body." (VainF), "" (smp), None
        for dense branches.
    """
    names = conv_bn("branches.0", "convs.0.0", "convs.0.1")
    for i in range(1, branches):
        names[f"branches.{i}.bn"] = f"convs.{i}.1"
        if separable is None:
            names[f"branches.{i}.conv"] = f"convs.{i}.0"
        else:
            names |= separable_names(f"branches.{i}", f"convs.{i}.0.{separable}")
    names |= conv_bn("pool", f"convs.{branches}.1", f"convs.{branches}.2")
    return names | conv_bn("project", "project.0", "project.1")


def separable_names(ours: str, theirs: str) -> Names:
    """Depthwise and pointwise, the first two of a Sequential; `theirs` ends with a dot."""
    return {f"{ours}.depthwise": f"{theirs}0", f"{ours}.pointwise": f"{theirs}1"}


def branched_names() -> Names:
    """v3+ as YudeWang, and bubbliiiing after him, name it: `aspp.branch{1..4}`, `cat_conv`, `cls_conv`."""
    names: Names = {}
    for i in range(4):
        theirs = f"aspp.branch{i + 1}"
        names |= conv_bn(f"head.aspp.branches.{i}", f"{theirs}.0", f"{theirs}.1")
    names |= conv_bn("head.aspp.pool", "aspp.branch5_conv", "aspp.branch5_bn")
    names |= conv_bn("head.aspp.project", "aspp.conv_cat.0", "aspp.conv_cat.1")
    names |= conv_bn("head.decoder.low", "shortcut_conv.0", "shortcut_conv.1")
    names |= conv_bn("head.decoder.convs.0", "cat_conv.0", "cat_conv.1")
    names |= conv_bn("head.decoder.convs.1", "cat_conv.4", "cat_conv.5")
    return names | {"head.decoder.classifier": "cls_conv"}
