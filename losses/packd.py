"""PACKD: pattern-affinitive contrastive knowledge distillation."""

import torch
from torch import nn

from losses.memory import embed, random_memory, remember, similarities


class PACKDLoss(nn.Module):
    """PACKD (Yang et al., 2022): a student's embedding is drawn to the teacher's and pushed from K in the memory.

    The paper's positives are patterns of one image (mixed images), weighted by the optimal transport between student's
    and teacher's. Hashing has one pattern an image, and a transport of one to one is 1, so none is computed. The loss
    is -log(exp(p/T) / (exp(p/T) + sum of exp(n/T))), mean over the images.

    Args:
        student_dim, teacher_dim: widths of what is embedded.
        n_data: number of training images.
        feat_dim: width of the embedding; at most ``teacher_dim``; where equal, the teacher keeps its own space.
        temperature: T.
        momentum: share of the memory that an update keeps; the first epoch (n_data images) keeps nothing.
    """

    memory: torch.Tensor
    seen: torch.Tensor

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        n_data: int,
        feat_dim: int = 64,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}: it must be above 0")
        feat_dim = min(feat_dim, teacher_dim)
        self.n_data, self.temperature, self.momentum = n_data, temperature, momentum
        self.embed_student = nn.Linear(student_dim, feat_dim)
        self.embed_teacher = nn.Linear(teacher_dim, feat_dim) if feat_dim < teacher_dim else nn.Identity()
        self.register_buffer("memory", random_memory(n_data, feat_dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor, index: torch.Tensor, contrast_index: torch.Tensor
    ) -> torch.Tensor:
        """The loss of one batch; the teacher's embeddings enter the memory first.

        Args:
            student, teacher: [B, .].
            index: [B] positions among the training images.
            contrast_index: [B, K] positions of the negatives.
        """
        student, teacher = embed(self.embed_student, student), embed(self.embed_teacher, teacher)  # [B, f]
        momentum = self.momentum * (self.seen >= self.n_data)
        remember(self.memory, index, teacher, momentum)
        self.seen += len(index)

        positive = torch.einsum("bf,bf->b", student, teacher) / self.temperature
        negative = similarities(student, self.memory, contrast_index) / self.temperature  # [B, K]
        everything = torch.logsumexp(torch.cat([positive[:, None], negative], dim=1), dim=1)
        return (everything - positive).mean()
