"""What the tests of side networks share."""

import pytest

from peftlab.methods.narrow_layers import stacks

ALL = slice(None)
SIDES = ("lst", "attention-fusion")
FAMILIES = ("roberta", "gpt2", "t5", "llama")
each = pytest.mark.parametrize("name", SIDES)
some = pytest.mark.parametrize("family", FAMILIES)


def blocks(m):
    return [b for _, bs, _ in stacks(m) for b in bs]


def graph(tensor):
    """The leaves that the backward pass of a tensor reaches."""
    todo, met, leaves = [tensor.grad_fn], set(), set()
    while todo:
        node = todo.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        todo += [n for n, _ in node.next_functions]
    return leaves
