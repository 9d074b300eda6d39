"""What the authors' released code computes in place of BRCD, for ``--variant released``."""

import torch

from losses.brcd import BRCDLoss


class ReleasedBRCDLoss(BRCDLoss):
    """BRCD with the released code's slip: rows of the teacher's half drop what the student's rows drop."""

    def same_cluster(self, cluster_i: torch.Tensor, cluster_j: torch.Tensor) -> torch.Tensor:
        upper = super().same_cluster(cluster_i, cluster_j)[: len(cluster_i)]
        return torch.cat([upper, upper])
