"""Measures: of detectors (:mod:`.average_precision`), of pictures (:mod:`.distances`, :mod:`.clip_score`, :mod:`.colours`)."""
