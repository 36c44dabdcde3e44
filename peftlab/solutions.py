"""The reference solutions of the exercises, all in one place. A learner should try first."""

from .methods.reparameterized import LoRA


class MyLoRA(LoRA):
    """Rows of `x` are tokens, so the transposes stand on the right: `x @ A.T` has the shape (… r). The scale is applied
    where a token has only r numbers: scaling `x` first would store every input a second time.
    """

    def forward(self, x, y):
        return y + self.s * (x @ self.A.T @ self.B.T)
