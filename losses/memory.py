"""What CRD, CRCD and PACKD share: embeddings on the sphere, memories of them, and the NCE objective."""

import math

import torch
import torch.nn.functional as F
from torch import nn

SMALL_MEMORY = 40  # times the number of contrasted rows


def embed(layer: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """[B, .] -> [B, f] on the unit sphere."""
    return F.normalize(layer(rows.float()), dim=1)


def random_memory(n_data: int, feat_dim: int) -> torch.Tensor:
    """One random unit row for each training image, [n, f]."""
    return F.normalize(torch.rand(n_data, feat_dim) * 2 - 1, dim=1)


@torch.no_grad()
def remember(memory: torch.Tensor, index: torch.Tensor, rows: torch.Tensor, momentum: float | torch.Tensor) -> None:
    """memory[index] <- normalised momentum * memory[index] + (1 - momentum) * rows; [n, f], [B], [B, f]."""
    memory[index] = F.normalize(memory[index] * momentum + rows * (1 - momentum), dim=1)


def similarities(rows: torch.Tensor, memory: torch.Tensor, contrast_index: torch.Tensor) -> torch.Tensor:
    """Dot products of each row with the memory rows that it is contrasted with: [B, f], [n, f], [B, C] -> [B, C]."""
    if len(memory) <= SMALL_MEMORY * contrast_index.shape[1]:
        # Cheaper than copying B * C rows together. A clone, since the memory changes before the gradient is taken.
        return (rows @ memory.clone().T).gather(1, contrast_index)
    return torch.einsum("bcf,bf->bc", memory[contrast_index], rows)


def nce(logits: torch.Tensor, n_data: int) -> torch.Tensor:
    """Noise-contrastive estimation (Gutmann & Hyvarinen, AISTATS 2010) with a uniform noise distribution.

    With c = K / n_data the noise's share, a negative of probability P costs -log(c / (P + c)) = log(1 + P / c), and a
    positive -log(P / (P + c)) = log(1 + P / c) - log(P / c).

    Args:
        logits: [..., K + 1] log of unnormalised model probabilities, the positive's first.
        n_data: the noise gives each of this many images the same probability.

    Returns:
        scalar, the sum over the K + 1 terms, mean over the rest.
    """
    margin = logits - math.log((logits.shape[-1] - 1) / n_data)
    return ((1 + margin.exp()).log().sum() - margin[..., 0].sum()) / margin[..., 0].numel()


class MemoryLoss(nn.Module):
    """Base of CRD and CRCD: two embeddings, two memories, two normalising constants set at the first batch.

    Args:
        student_dim, teacher_dim: widths of what is embedded.
        n_data: number of training images.
        feat_dim: width of the embedding.
        n_negatives: K, how many others a positive is contrasted with.
        temperature: divides similarities.
        momentum: share of the memory that an update keeps.
    """

    memory_student: torch.Tensor
    memory_teacher: torch.Tensor
    z: torch.Tensor

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        n_data: int,
        feat_dim: int = 128,
        n_negatives: int = 500,
        temperature: float = 0.05,
        momentum: float = 0.5,
    ):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}: it must be above 0")
        if n_negatives < 1:
            raise ValueError(f"n_negatives is {n_negatives}: it must be at least 1")
        self.n_data, self.n_negatives, self.temperature, self.momentum = n_data, n_negatives, temperature, momentum
        self.embed_student = nn.Linear(student_dim, feat_dim)
        self.embed_teacher = nn.Linear(teacher_dim, feat_dim)
        self.register_buffer("memory_student", random_memory(n_data, feat_dim))
        self.register_buffer("memory_teacher", random_memory(n_data, feat_dim))
        self.register_buffer("z", torch.full((2,), -1.0))  # normalising constants: student's side, teacher's side
        self.ready = False  # whether this process knows that z is set

    def log_scores(self, side: int, exponents: torch.Tensor) -> torch.Tensor:
        """log of exp(x / T) / Z, with Z the side's constant, which the first batch sets to the mean times n_data."""
        logits = exponents / self.temperature
        if not self.ready:
            mean = torch.exp(logits.detach()).mean() * self.n_data
            self.z[side] = torch.where(self.z[side] < 0, mean, self.z[side])
        return logits - self.z[side].log()

    def exponents(
        self, rows: torch.Tensor, memory: torch.Tensor, index: torch.Tensor, contrast_index: torch.Tensor
    ) -> torch.Tensor:
        """Similarities of ``rows`` [B, f] with the other side's memory, [..., K + 1]: what tells CRD from CRCD."""
        raise NotImplementedError

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor, index: torch.Tensor, contrast_index: torch.Tensor
    ) -> torch.Tensor:
        """The loss of one batch; then the batch's embeddings enter the memories.

        Args:
            student, teacher: [B, .].
            index: [B] positions among the training images.
            contrast_index: [B, K + 1] positions to contrast with; column 0 is ``index``.
        """
        student, teacher = embed(self.embed_student, student), embed(self.embed_teacher, teacher)  # [B, f]
        loss = nce(self.log_scores(0, self.exponents(student, self.memory_teacher, index, contrast_index)), self.n_data)
        loss = loss + nce(
            self.log_scores(1, self.exponents(teacher, self.memory_student, index, contrast_index)), self.n_data
        )
        self.ready = True
        remember(self.memory_student, index, student, self.momentum)
        remember(self.memory_teacher, index, teacher, self.momentum)
        return loss
