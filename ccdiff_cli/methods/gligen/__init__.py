"""GLIGEN, open-set grounded generation (Li et al., CVPR 2023, arXiv 2301.07093)."""
