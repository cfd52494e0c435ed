"""The experiments of DVC, which it stores as commits in references of git."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from leanresnet.analysis.dvc_lock import LOCK, read_stages
from leanresnet.config.load import parse_mapping, validate
from leanresnet.config.schema import Params
from leanresnet.errors import DataError
from leanresnet.models.checkpoint import WEIGHTS
from leanresnet.tracking.git import git

# DVC keeps an experiment below the commit that it began at, and its queue in other references.
EXPERIMENT_REF = re.compile(r"refs/exps/(?P<begin>[0-9a-f]{2})/(?P<rest>[0-9a-f]+)/(?P<name>.+)")


def is_named(experiment: str, name: str) -> bool:
    """Return whether an experiment is one of those that a name stands for, `name` and `name-...`."""
    return experiment == name or experiment.startswith(f"{name}-")


def weights_of_experiments(root: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the md5 of the models' weights in the DVC experiments of a workspace that the names stand for.

    They are the weights of the models that one of a name's experiments changed since the commit that it began at, or of
    all models if none of them changed one. Of experiments with the same name it is the newest. One with a damaged
    dvc.lock is skipped.

    Returns:
        Lists by the experiment's name.
    """
    weights = cache(partial(_weights, root))
    found: dict[str, list[str]] = {}
    for name in names:
        experiments: dict[str, dict[str, str]] = {}
        changed: set[str] = set()
        for ref in _refs(root):
            if is_named(ref["name"], name):
                with suppress(DataError):
                    experiments[ref["name"]] = after = weights(ref[0])
                    changed |= {path for path, _ in after.items() - weights(ref["begin"] + ref["rest"]).items()}
        for experiment, after in experiments.items():
            found[experiment] = [md5 for path, md5 in after.items() if path in (changed or after)]
    return found


def params_of_experiment(root: Path, name: str) -> Params | None:
    """Return the params with which the newest DVC experiment of this name ran, or None if there is none.

    Raises:
        ConfigError: if they are not valid, as after a change of the schema.
    """
    refs = [ref[0] for ref in _refs(root) if ref["name"] == name]
    if not refs:
        return None
    where = f"params.yaml of the experiment {name}"
    text = git(root, "show", f"{refs[-1]}:./params.yaml") or ""
    return validate(parse_mapping(text, where), where, Params)


def _refs(root: Path) -> Iterator[re.Match[str]]:
    """Iterate over the references of the experiments, the oldest first."""
    refs = git(root, "for-each-ref", "--sort=committerdate", "--format=%(refname)", "refs/exps") or ""
    return filter(None, map(EXPERIMENT_REF.fullmatch, refs.split()))


def _weights(root: Path, revision: str) -> dict[str, str]:
    """Return the md5 of the models' weights in the dvc.lock of a revision, by path."""
    stages = read_stages(git(root, "show", f"{revision}:./{LOCK}") or "")
    outs = (out for stage in stages.values() for out in stage.digests("outs").items())
    return {path: md5 for path, md5 in outs if Path(path).name == WEIGHTS}
