"""PACKD: pattern-affinitive contrastive knowledge distillation."""

import torch
from torch import nn

from losses.memory import embed, random_memory, remember, similarities

SINKHORN_STEPS = 100


def sinkhorn(cost: torch.Tensor, eps: float) -> torch.Tensor:
    """Optimal transport between uniform margins, regularised by entropy: cost [G, P, P] -> plans that sum to 1."""
    if cost.shape[1] == 1:
        return torch.ones_like(cost)  # one pattern: nothing to transport
    log_margin = -torch.log(torch.tensor(float(cost.shape[1]), device=cost.device))
    u = torch.zeros_like(cost[:, :, 0])  # [G, P]
    v = torch.zeros_like(u)
    for _ in range(SINKHORN_STEPS):
        u = eps * (log_margin - torch.logsumexp((v[:, None] - cost) / eps, dim=2))
        v = eps * (log_margin - torch.logsumexp((u[:, :, None] - cost) / eps, dim=1))
    return torch.exp((u[:, :, None] + v[:, None] - cost) / eps)


class PACKDLoss(nn.Module):
    """PACKD (Yang et al., 2022): a student's embedding is drawn to the teacher's and pushed from K in the memory.

    Positives are the patterns of one image, weighted by the optimal transport between student's and teacher's. Hashing
    has one pattern an image, so its plan is 1; groups of more (mixed images in the paper) go through the same lines.
    The loss is -log(exp(p/T) / (exp(p/T) + sum of exp(n/T))), mean over the images.

    Args:
        student_dim, teacher_dim: widths of what is embedded.
        n_data: number of training images.
        feat_dim: width of the embedding; at most ``teacher_dim``; where equal, the teacher keeps its own space.
        temperature: T.
        momentum: share of the memory that an update keeps; the first epoch (n_data images) keeps nothing.
        sinkhorn_eps: entropy of the transport.
        patterns: rows an image.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        n_data: int,
        feat_dim: int = 64,
        temperature: float = 0.07,
        momentum: float = 0.5,
        sinkhorn_eps: float = 0.1,
        patterns: int = 1,
    ):
        super().__init__()
        if temperature <= 0 or sinkhorn_eps <= 0:
            raise ValueError(f"temperature is {temperature}, sinkhorn_eps {sinkhorn_eps}: it must be above 0")
        feat_dim = min(feat_dim, teacher_dim)
        self.n_data, self.temperature, self.momentum = n_data, temperature, momentum
        self.sinkhorn_eps, self.patterns = sinkhorn_eps, patterns
        self.embed_student = nn.Linear(student_dim, feat_dim)
        self.embed_teacher = nn.Linear(teacher_dim, feat_dim) if feat_dim < teacher_dim else nn.Identity()
        self.register_buffer("memory", random_memory(n_data, feat_dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor, index: torch.Tensor, contrast_index: torch.Tensor
    ) -> torch.Tensor:
        """The loss of one batch; the teacher's embeddings enter the memory first.

        Args:
            student, teacher: [patterns * B, .], an image's patterns one after the other, the plain one first.
            index: [B] positions among the training images.
            contrast_index: [B, K] positions of the negatives.
        """
        student = embed(self.embed_student, student).unflatten(0, (-1, self.patterns))  # [B, P, f]
        teacher = embed(self.embed_teacher, teacher).unflatten(0, (-1, self.patterns))
        momentum = self.momentum * (self.seen >= self.n_data)
        remember(self.memory, index, teacher[:, 0], momentum)
        self.seen += len(index)

        affinity = student @ teacher.transpose(1, 2)  # [B, P, P] cosines
        with torch.no_grad():
            plan = sinkhorn(1 - affinity, self.sinkhorn_eps)
        positive = (affinity * plan).sum(dim=(1, 2)) / self.temperature  # [B]
        every = contrast_index.repeat_interleave(self.patterns, dim=0)  # [B P, K]
        negative = similarities(student.flatten(0, 1), self.memory, every).view(len(positive), -1) / self.temperature
        everything = torch.logsumexp(torch.cat([positive[:, None], negative], dim=1), dim=1)
        return (everything - positive).mean()
