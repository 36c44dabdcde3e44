"""The reference solutions of the exercises, all in one place. A learner should try first."""

import torch

import peftlab as pl

from .methods.reparameterized import LoRA


class MyLoRA(LoRA):
    """Rows of `x` are tokens, so the transposes stand on the right: `x @ A.T` has the shape (… r). The scale is applied
    where a token has only r numbers: scaling `x` first would store every input a second time.
    """

    def forward(self, x, y):
        return y + self.s * (x @ self.A.T @ self.B.T)


class OwnLoRA(pl.OutputDelta):
    """B starts as zero, so at the start BA is zero and the model is unchanged. A must not be zero too: the gradient of
    each factor is multiplied by the other one, and with two zeros neither would ever move. Dividing by the root of the
    width keeps the numbers of `A x` as large as those of `x`.
    """

    def __init__(self, m, r, alpha):
        super().__init__()
        self.A = torch.nn.Parameter(torch.randn(r, m.in_features) / m.in_features**0.5)
        self.B = torch.nn.Parameter(torch.zeros(m.out_features, r))
        self.s = alpha / r

    def forward(self, x, y):
        return y + self.s * (x @ self.A.T @ self.B.T)


def kron_rank(A, B):
    """The singular values of A ⊗ B are all products of one of A's and one of B's. Such a product is zero as soon as one
    of the two is, so rank(A)·rank(B) of them are left. Two small matrices of full rank thus make a large one of full
    rank, which B A with a small r can never be.
    """
    return torch.linalg.matrix_rank(A) * torch.linalg.matrix_rank(B)


def lora_scales(alpha, r):
    """B A x is a sum of r terms of either sign, so it grows like √r. LoRA divides by r, and the change shrinks when the
    rank grows; rsLoRA divides by √r, and it keeps its size. At r = 1 they are the same.
    """
    return alpha / r, alpha / r**0.5


def crossed(Bs, As, w):
    """The mixture multiplies two sums, so each Bᵢ meets every Aⱼ, also those of other tasks, with the weight wᵢwⱼ. It
    meets its own Aᵢ with wᵢ² in place of wᵢ. Nothing is left over where one weight is 1 and the others are 0.
    """
    added = lambda matrices: sum(c * M for c, M in zip(w, matrices, strict=True))
    return added(Bs) @ added(As) - added([B @ A for B, A in zip(Bs, As, strict=True)])
