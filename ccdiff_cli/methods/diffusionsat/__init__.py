"""DiffusionSat: a caption and seven quantities (place, GSD, cloud cover, date) to a picture."""
