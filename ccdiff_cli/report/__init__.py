"""Self-contained HTML pages with their tables: of a trainability comparison, of an evaluation, of a set.

``page`` holds what all are made of, ``figures`` the style of all figures; a module each for ``eval-trainability``, ``evaluate`` and
``inspect``.  NOTE: matplotlib is shielded here, before any of them imports it.
"""

from ..startup import shield_matplotlib

shield_matplotlib()
