"""Methods that turn a layout into a picture, one folder each; what they share is in ``models``."""
