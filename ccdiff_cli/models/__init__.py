"""The generator: resamplers, conditional generation module, diffusers pipeline, checkpoints."""
