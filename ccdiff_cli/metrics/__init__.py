"""Measures: of detectors (:mod:`.average_precision`)."""
