"""A model on this machine goes to the Hugging Face hub: checked first, with a card, in one commit."""

import dataclasses
import json
import math
import os
import re
import tempfile
from pathlib import Path

from flax import nnx

from deeplab_jax import hub
from deeplab_jax.card import MARK, Scores, Training, card, scores_from, training_from
from deeplab_jax.checkpoint import (
    CONFIG,
    RUN_CHECKPOINTS,
    ModelError,
    files_of,
    is_sealed,
    load,
    model_path,
    save,
    weights_of,
)
from deeplab_jax.config import mask_classes
from deeplab_jax.images import read_image
from deeplab_jax.model import SegmentationModel, named_variables

CARD = "README.md"
_PICTURES = {".jpg": "picture.jpg", ".jpeg": "picture.jpg", ".png": "picture.png"}
_SCORES = Path("evaluation") / "scores.json"


class PushError(ValueError):
    """What cannot be pushed as it was asked for; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Pushed:
    """What became of a push.

    Attributes:
      repository: under which the model is loaded.
      commit: its id.
      notes: what is not as one may think.
    """

    repository: str
    commit: str
    notes: tuple[str, ...]


def push(
    path: str | os.PathLike,
    to: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Push a model of deeplab_jax",
    licence: str | None = None,
    picture: str | os.PathLike | None = None,
    overwrite_card: bool = False,
) -> Pushed:
    """Uploads a model folder and its card to a repository, which is made if it is not there.

    The model is loaded first, and its digest checked. A model that is there is replaced, in one commit.

    Args:
      path: a model folder, a .safetensors file, which becomes a folder, or a run's folder, whose scores the
        card has.
      to: hf://USER/NAME.
      private: make the repository for those alone whom its owner lets in.
      revision: the branch, which is made from the default one if it is not there.
      message: of the commit.
      licence: as the hub calls it, "apache-2.0".
      picture: a JPEG or PNG for the card.
      overwrite_card: replace a README.md that somebody has written.

    Raises:
      ModelError: it is not a model, or damaged.
      PushError: what is there may not be replaced, or an option is wrong.
      HubError: the hub cannot be reached, or refuses.
    """
    target = _target(to, revision)
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise PushError(
            f"licence must be a name that the hub knows, such as apache-2.0, got {licence!r}"
        )
    picture_name = None if picture is None else _picture_name(Path(picture))
    hub.check_writable()
    found = model_path(path)
    model = load(found)
    told = _told_by_run(found.parent, mask_classes(model.config.num_classes))
    before = _before(target)
    if private and before.contents is not None and not before.contents.private:
        raise PushError(
            f"{target} is there and public: make it private in its settings, or leave out --private"
        )
    files: dict[str, Path | bytes] = {}
    notes = told.notes
    if before.has_own_card and not overwrite_card:
        notes += (
            f"the {CARD} there is somebody's own, and is left as it is: --overwrite-card replaces it",
        )
    else:
        text = card(
            model.config,
            str(target),
            parameters=_parameters(model),
            scores=told.scores,
            training=told.training,
            licence=licence,
            picture=picture_name,
        )
        files[CARD] = text.encode()
        if picture is not None and picture_name is not None:
            files[picture_name] = Path(picture)
    with tempfile.TemporaryDirectory() as here:
        if not (found.is_dir() and is_sealed(found)):
            found = save(model, Path(here) / "model")
        files |= {name: found / name for name in files_of(found)}
        commit = hub.commit(
            target,
            files,
            removed=[name for name in before.weights if name not in files],
            message=message,
            private=private,
            new=before.contents is None,
            new_branch=before.new_branch,
            parent=None if before.contents is None else before.contents.commit,
        )
    return Pushed(str(target), commit, notes)


def _target(to: str, revision: str | None) -> hub.Repository:
    found = hub.repository_of(to)
    if found is None:
        raise PushError(f"a model is pushed to {hub.SCHEME}USER/NAME, got {to}")
    if found.revision is not None:
        raise PushError(
            f"a model is pushed to a branch that --revision names: {hub.SCHEME}{found.name} "
            f"--revision {found.revision}, got {to}"
        )
    return dataclasses.replace(found, revision=revision)


def _picture_name(picture: Path) -> str:
    """What a picture is called beside the card; ImageError where it cannot be read."""
    if (name := _PICTURES.get(picture.suffix.lower())) is None:
        raise PushError(f"the picture must be a .jpg or .png file, got {picture}")
    read_image(picture)
    return name


def _parameters(model: SegmentationModel) -> int:
    variables = named_variables(model).values()
    return sum(math.prod(v.shape) for v in variables if isinstance(v, nnx.Param))


# ---------------------------------------------------------------------------- the repository


@dataclasses.dataclass(frozen=True)
class _Before:
    """A repository before a push.

    Attributes:
      contents: of the branch, or of that from which it will be made; None where there is no repository.
      new_branch: whether the branch has to be made.
      weights: the files of a model that is there.
      has_own_card: whether there is a card that is not of our making.
    """

    contents: hub.Contents | None
    new_branch: bool = False
    weights: tuple[str, ...] = ()
    has_own_card: bool = False


def _before(target: hub.Repository) -> _Before:
    """Raises PushError where the model in the repository is another library's."""
    at = dataclasses.replace(target, revision=None)
    contents, new_branch = hub.contents(at), False
    if target.revision is not None:
        branch = None if contents is None else hub.contents(target)
        new_branch = branch is None
        contents, at = (contents, at) if branch is None else (branch, target)
    if contents is None:
        return _Before(None, new_branch)
    weights: tuple[str, ...] = ()
    if CONFIG in contents.files:
        try:
            folder = weights_of(hub.read_text(at, CONFIG), str(at))
        except ModelError as error:
            raise PushError(
                f"{at} has a {CONFIG} that is no model's of this library, and is not overwritten: choose "
                f"another name ({error})"
            ) from error
        weights = tuple(name for name in contents.files if name.startswith(f"{folder}/"))
    own_card = CARD in contents.files and MARK not in hub.read_text(at, CARD)
    return _Before(contents, new_branch, weights, own_card)


# ---------------------------------------------------------------------------- the run


@dataclasses.dataclass(frozen=True)
class _Told:
    """What a run's folder says of its model; nothing of one that is in no run's folder."""

    training: Training | None = None
    scores: Scores | None = None
    notes: tuple[str, ...] = ()


def _told_by_run(run: Path, classes: int) -> _Told:
    if not (run / RUN_CHECKPOINTS).is_dir():
        return _Told()
    try:
        training = training_from(json.loads((run / CONFIG).read_text("utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        training = None
    try:
        data = json.loads((run / _SCORES).read_text("utf-8"))
        scores = scores_from(data, training)
    except FileNotFoundError:
        return _Told(training, notes=(f"the card has no scores, as {run} has no {_SCORES}",))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        return _Told(
            training, notes=(f"the card has no scores: {run / _SCORES} is damaged ({why})",)
        )
    if len(scores.classes) != classes or data.get("step") not in (None, last := _last_step(run)):
        note = (
            f"the card has no scores: those in {run / _SCORES} are of another model than the run's. "
            f"`deeplab-train evaluate {run} --out {run / _SCORES.parent}` measures it"
        )
        return _Told(training, notes=(note,))
    if training is not None and data.get("step") == last:
        training = dataclasses.replace(training, steps=last)
    return _Told(training, scores)


def _last_step(run: Path) -> int | None:
    """The step at which a run ends, see `train.run_folder`; a run that was stopped has not come there."""
    try:
        return json.loads((run / "environment.json").read_text("utf-8")).get("steps")
    except (OSError, ValueError, AttributeError):
        return None
