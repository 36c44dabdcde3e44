"""What the gates of S³Delta have found: how likely each candidate is, and which are kept."""

from .backbones import layer_of
from .errors import PeftlabError
from .methods.gates import Gate


def structure(model, attached):
    """A row for each candidate: {layer, site, name, kind, p, kept, numbers}.

    name: the module's, as a layer may have a site twice (T5). kind: lora, adapter, bias or norm. p: how likely its gate
    is open, before the search the same for all, None where a file has brought the structure. numbers: how many learn if
    it is kept. PeftlabError for deltas without gates.
    """
    found, names = [], {id(m): name for name, m in model.named_modules()}
    for d, m in attached.placed:
        if isinstance(d, Gate):
            kind, p = attached.recipe[d.row]["method"].removeprefix("gate-"), d.peers[0].p
            found.append(
                dict(layer=layer_of(m), site=m.site, name=names[id(m)], kind=kind, p=p and p[d.place], kept=d.kept)
                | dict(numbers=d.size)
            )
    if not found:
        raise PeftlabError("none of these deltas has a gate that chooses it; attach s3delta first")
    return found
