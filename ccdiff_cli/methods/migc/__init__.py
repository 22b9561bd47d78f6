"""MIGC, the multi-instance generation controller (Zhou et al., CVPR 2024, arXiv 2402.05408)."""
