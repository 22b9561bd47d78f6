"""ccdiff: layout-conditioned diffusion that multiplies a labelled set of aerial pictures."""

__version__ = "0.1.0"
