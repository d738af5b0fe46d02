"""The inverses that the paper's authors published: from their files of tensors to chains of ours."""

from backsight.authors.networks import Network, read_network
from backsight.authors.run import import_authors
from backsight.authors.states import Published, find_published

__all__ = ["Network", "Published", "find_published", "import_authors", "read_network"]
