"""HSAL: saliency-based sequential image attention with multiset prediction, as Gymnasium environments.

Importing this package registers the ids in :data:`ENVIRONMENTS` and :data:`VIEW_ENVIRONMENTS`; it imports neither torch nor data.
A process that is forked later computes with one thread of torch (:mod:`hsal_env.forks`).
"""

from hsal_env.forks import use_one_thread_after_a_fork
from hsal_env.registration import ENVIRONMENTS, VIEW_ENVIRONMENTS, register_all

__version__ = "0.2.0"
__all__ = ["ENVIRONMENTS", "VIEW_ENVIRONMENTS", "__version__"]

register_all()
use_one_thread_after_a_fork()
