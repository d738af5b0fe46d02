"""The web page: what a model keeps of an image, live. On this machine alone by default; needs the extra ``app``.

Everything a view shows follows from its state, which is its address, so a link shows the same again. What visitors
share is the :class:`~backsight.app.workspace.Workspace`: models behind locks, and images in bounded memory.
"""

from backsight.app.serve import serve

__all__ = ["serve"]
