"""The web page: look through a model's eyes, live. Local unless told otherwise; needs the extra ``app``.

Everything a view shows follows from its state, which is its address, so a link shows the same again. What visitors
share is the :class:`~backsight.app.observatory.Observatory`: models behind locks, and pictures in bounded memory.
"""

from backsight.app.serve import serve

__all__ = ["serve"]
