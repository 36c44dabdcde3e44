"""The reference solutions of the exercises; those of labs 04 and 05 are beside it. A learner should try first."""

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


def top_k(score, k):
    """A stable sort keeps equal entries in their order, so the first k of it are exactly k, and of equal ones the
    first. A threshold cannot do this: `score >= c` takes all that tie with the k-th and spends more than the budget;
    a strict `>`, as in the indicator of Theorem 3 of 2211.15583, takes none that tie at the border and spends less.
    """
    return score.argsort(descending=True, stable=True)[:k].sort().values


def sparse_step(W, g, mask, lr, decay):
    """A weight is moved by its gradient and by its decay, and both must stop at the mask. Whoever sets the gradient of
    the others to zero and leaves the rest to AdamW has a model in which every entry shrinks a little in each step: a
    dense change, not a p-sparse one. peftlab trains nothing but the change v of the masked entries, so its decay pulls
    v towards zero and the weights back to the pretrained ones.
    """
    return torch.where(mask, W - lr * (g + decay * W), W)


def child_tuning_d(gradients, p):
    """The squares are taken before the sum, so that batches that disagree do not cancel. In training the mask M is
    found once, before the first step, and then stays: each step goes along M ⊙ g with the gradient g of its own batch,
    here the last. The gradient is not divided by p; Child-Tuning-F does that, since its mask is drawn anew in each step
    and so the mean over masks is the whole gradient.
    """
    F = sum(g * g for g in gradients)
    at = F.topk(int(p * len(F))).indices
    return torch.zeros_like(F).index_copy(0, at, gradients[-1][at])


def best_mask(g, h, k):
    """Along entry i alone the model changes by gᵢΔ + hᵢΔ²/2. This is least at Δ = -gᵢ/hᵢ, where it has fallen by
    gᵢ²/(2hᵢ). With a diagonal H the entries do not meet, so the gains add, and the k largest are the best mask. With
    one bound in place of all the hᵢ only g² is left to rank by: good where h varies little, poor where it varies much.
    """
    return (g * g / (2 * h)).topk(k).indices.sort().values


def expected_penalty(delta, p):
    """Of ‖(I - M)Δ‖² = Σ (1 - Mᵢ)²Δᵢ² the mean over M needs only that of (1 - Mᵢ)². As 1 - Mᵢ is 0 or 1 it is its own
    square, with the mean 1 - p. So a small p pulls all entries to the pretrained ones, though no single mask does: one
    mask penalises most entries and leaves the others entirely free.
    """
    return (1 - p) * (delta @ delta)


def leave_one_out(X, y, lam):
    """The prediction is Hy, and hᵢ, the i-th on the diagonal of H, says how far row i pulls it towards its own yᵢ. Put
    what the fit without row i predicts for it in place of yᵢ: then the fit to all n rows is that same fit, since row i
    adds no error to L. So the residual rᵢ asked for has rᵢ = eᵢ + hᵢrᵢ, which is eᵢ/(1 - hᵢ). This is exact only if L
    divides by the same n with and without row i, and then n refits cost one.
    """
    n, d = X.shape
    H = X @ torch.linalg.solve(X.T @ X + n * lam * torch.eye(d), X.T)
    return (y - H @ y) / (1 - H.diagonal())


def adapter_output(x, y, D, c, U, e, parallel):
    """The two differ in one place: what is read. Both add to y, for the layer's own output must not be lost, and with
    U = 0 and e = 0 both leave the model as it is. relu stands where a token has only r numbers; after U it would let
    the adapter add but never take away, and without it U D would be one matrix of rank at most r, as in LoRA.
    """
    read = x if parallel else y
    return y + torch.relu(read @ D.T + c) @ U.T + e


def fold_ia3(layer, l):
    """A weight is (out in): a gain on what goes out scales its rows and the bias too, a gain on what comes in scales
    its columns and leaves the bias alone. `W * l` scales columns, as it counts from the last axis. Had you forgotten
    the bias at k alone, no logit of the RoBERTa would show it: a constant in all keys adds the same to all scores of a
    query, and softmax does not see that.
    """
    if layer.site == "down":
        layer.weight *= l
        return
    layer.weight *= l[:, None]
    if layer.bias is not None:
        layer.bias *= l


def prefix_attention(q, k, v, P_k, P_v, real, causal):
    """Every query hears the whole prefix: it is not padding, and it is earlier than any token. So the padding mask gets
    n times True in front, and the causal mask, (t n+t) now, moves n columns to the right. In attention keys have no
    order of their own; the prefix may stand behind the text as well, if the columns of both masks go with it.
    """
    (b, t, d), n = q.shape, len(P_k)
    k, v = torch.cat([P_k.expand(b, -1, -1), k], 1), torch.cat([P_v.expand(b, -1, -1), v], 1)
    seen = torch.nn.functional.pad(real, (n, 0), value=True)[:, None]
    if causal:
        seen = seen & torch.ones(t, n + t).bool().tril(n)
    scores = (q @ k.mT / d**0.5).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v


def fuse(y, z, Q, K, V):
    """The token asks, the adapters' answers are keys and values: as many scores as adapters, and for each token the
    weights sum to one. One adapter alone has the weight 1, whatever is asked, and where all answer the same, so does
    the mixture. As y stands outside, the weights decide only whom a token believes, not how much of it is kept.
    """
    s = torch.einsum("btd,btnd->btn", y @ Q.T, z @ K.T).softmax(-1)
    return y + torch.einsum("btn,btnd->btd", s, z) @ V.T
