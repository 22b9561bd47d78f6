"""LayoutDiffusion (Zheng et al., CVPR 2023, arXiv 2303.17189), built from its published description."""
