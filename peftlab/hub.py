"""Models and datasets of the Hugging Face Hub, with a quick and clear answer when there is no network."""

import contextlib

from .errors import PeftlabError

ALIASES = {"glue": "nyu-mll/glue", "super_glue": "aps/super_glue"}
SPLITS = dict(train=("train",), validation=("validation", "validation_matched", "dev"), test=("test", "test_matched"))
PATIENCE = 5  # seconds to wait for the Hub before saying that it is not there


def address(name):
    """ "glue/sst2" -> ("nyu-mll/glue", "sst2"); "owner/name[/config]" -> ("owner/name", config or None)."""
    first, *rest = name.split("/")
    if first in ALIASES and len(rest) == 1:
        return ALIASES[first], rest[0]
    if len(rest) not in (1, 2) or not all([first, *rest]):
        raise PeftlabError(
            f"a Hub dataset is owner/name or owner/name/config (or glue/sst2), not {name!r}; a file is file:PATH"
        )
    return f"{first}/{rest[0]}", rest[1] if len(rest) == 2 else None


def reachable(repo, kind="dataset"):
    """Does the Hub answer? PeftlabError if it answers that there is no such dataset (or model)."""
    from huggingface_hub import HfApi, errors

    try:
        HfApi().repo_info(repo, repo_type=kind, timeout=PATIENCE)
        return True
    except errors.RepositoryNotFoundError as problem:
        raise PeftlabError(
            f"the Hub has no public {kind} {repo!r}; check the name, or log in if it is private or gated"
        ) from problem
    except (
        Exception
    ):  # which HTTP client, and so which error, changes with huggingface_hub; all mean: the cache or nothing
        return False


def splits(name):
    """{"train": (name, DataFrame), …} of a Hub dataset; from the local cache when the Hub is out of reach."""
    import datasets

    repo, config = address(name)
    online = reachable(repo)
    try:
        with contextlib.nullcontext() if online else offline():
            whole = datasets.load_dataset(repo, config)
    except (OSError, ValueError, RuntimeError) as problem:
        if online:
            raise PeftlabError(f"{name}: the dataset cannot be loaded ({str(problem).splitlines()[0]})") from problem
        raise PeftlabError(
            f"{name}: no network to the Hub and no local copy; the embedded task 'reviews' needs none"
        ) from problem
    found = {}
    for split, choices in SPLITS.items():
        for choice in choices:
            if choice in whole and split not in found:
                found[split] = f"{name} ({choice})", frame(whole[choice])
    if "train" not in found:
        raise PeftlabError(f"{name} has no train split; it has {', '.join(whole)}")
    if "test" in found and "label" in found["test"][1] and (found["test"][1]["label"] == -1).all():
        del found["test"]  # GLUE keeps its test labels to itself; validation serves as test
    return found


def frame(split):
    """A split as a DataFrame; classes stay numbers, as in the dataset."""
    return split.to_pandas()


@contextlib.contextmanager
def offline():
    """The libraries look into the local cache only, so that a missing network costs no minutes of retries."""
    import datasets
    import huggingface_hub

    places = [(huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")]
    before = [(place, key, getattr(place, key, None)) for place, key in places]
    try:
        for place, key, _ in before:
            setattr(place, key, True)
        yield
    finally:
        for place, key, value in before:
            setattr(place, key, value)
