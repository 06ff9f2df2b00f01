"""HSAL: saliency-based sequential image attention with multiset prediction, as Gymnasium environments.

Importing this package registers the ids in :data:`ENVIRONMENTS` and :data:`VIEW_ENVIRONMENTS`; it imports neither torch nor data.
"""

from hsal_env.registration import ENVIRONMENTS, VIEW_ENVIRONMENTS, register_all

__version__ = "0.2.0"
__all__ = ["ENVIRONMENTS", "VIEW_ENVIRONMENTS", "__version__"]

register_all()
