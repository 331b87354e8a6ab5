"""Early stopping: whether a run has stopped improving, from the scores that its folder keeps."""

from collections.abc import Mapping


def best_and_since(scores: Mapping[int, float]) -> tuple[int, int]:
    """The step with the best mIoU, the first of several, and the number of evaluations after it.

    Args:
      scores: the mIoU of each step that was evaluated, at least one.
    """
    best = max(scores, key=lambda step: (scores[step], -step))
    return best, sum(step > best for step in scores)


def has_stalled(scores: Mapping[int, float], patience: int) -> bool:
    """Whether the best mIoU has not improved in `patience` evaluations."""
    return bool(scores) and best_and_since(scores)[1] >= patience
