"""Txt2Img-MHN: a caption to picture codes one after another, by a transformer of prototypes (modern Hopfield networks)."""
