"""See inside a recurrent network: why it forgets, where its states go, what its cells know.

Everything takes ``cell, params, state, xs`` like the rest of the library, works for every cell, and returns named
tuples of NumPy arrays. Pictures are in `rnnjax.analysis.plots`, which alone needs matplotlib.
"""

from rnnjax.analysis.ablation import ablate
from rnnjax.analysis.fixed_points import find_fixed_points, visited_states
from rnnjax.analysis.flat import trajectory
from rnnjax.analysis.gradient_flow import gradient_flow, gradient_lost
from rnnjax.analysis.jacobians import jacobian_spectrum, lyapunov_spectrum, recurrent_bound, step_jacobians
from rnnjax.analysis.labels import label_from_name
from rnnjax.analysis.newton import newton_report
from rnnjax.analysis.recording import SymbolModel, record, text_values
from rnnjax.analysis.search import search_units

__all__ = [
    "SymbolModel",
    "ablate",
    "find_fixed_points",
    "gradient_flow",
    "gradient_lost",
    "jacobian_spectrum",
    "label_from_name",
    "lyapunov_spectrum",
    "newton_report",
    "record",
    "recurrent_bound",
    "search_units",
    "step_jacobians",
    "text_values",
    "trajectory",
    "visited_states",
]
