"""The reference solutions of lab 05. A learner should try first."""

import torch


def one_adapter(Ds, cs, Us, es):
    """Each of the four is averaged over the copies, biases too. With relu between D and U this is not what the copies
    put out on average; that would be an adapter n times as wide. It is near it as long as the copies say nearly the
    same, and that is what AdaMix asks of them with its second pass.
    """
    return Ds.mean(0), cs.mean(0), Us.mean(0), es.mean(0)


def prune(weights, gradients, p):
    """When θ becomes zero the loss changes by -θ·g, to first order, and the size of that ranks the entries. All tensors
    share one budget, and one of them may lose all it has. In an adapter whose U starts at zero, θ is zero in U and g
    is zero in D: every score is 0. That is why SparseAdapter draws U small, but not zero.
    """
    score = torch.cat([(w * g).abs().flatten() for w, g in zip(weights, gradients, strict=True)])
    mask = torch.zeros(len(score), dtype=torch.bool)
    mask[score.argsort(descending=True, stable=True)[: int(p * len(score))]] = True
    parts = mask.split([w.numel() for w in weights])
    return [m.view(w.shape) for m, w in zip(parts, weights, strict=True)]


def masked(prototype, scores, p):
    """|s| minus |s| without its gradient adds no value to M, but it has the gradient of |s|. So the score of a hidden
    entry has a gradient too: what the loss would gain, to first order, if this layer saw the entry. That is how it can
    come back. The prototype is moved only where a mask shows it; what all layers want of it is added up.
    """
    size = scores.abs()
    at = size.flatten().topk(int(p * size.numel())).indices
    mask = torch.zeros(size.numel()).index_fill(0, at, 1.0).view(size.shape)
    return prototype * (mask + (size - size.detach()))


def stored_bits(layers, tasks, shapes):
    """Scores are needed in training alone; a file says which entries they choose. One more layer costs a bit for each
    entry of a matrix, where an adapter of its own costs 32, and nothing for the biases. In training it is the other
    way round: every layer has a score of 32 bits for each of these entries, and there is the prototype besides.
    """
    size = lambda shape: torch.Size(shape).numel()
    matrices = [size(s) for s in shapes if len(s) == 2]
    masks = matrices * layers + [tasks * n for n in matrices if tasks > 1]
    return 32 * sum(map(size, shapes)) + sum(8 * -(-n // 8) for n in masks)
