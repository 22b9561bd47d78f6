"""AeroGen (Tang et al., CVPR 2025, arXiv 2411.15497), built from its published description."""
