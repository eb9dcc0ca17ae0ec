"""See inside a recurrent network: why it forgets, where its states go, what its cells know.

Everything takes ``cell, params, state, xs`` like the rest of the library, works for every cell, and returns named
tuples of NumPy arrays. Pictures are in `rnnjax.analysis.plots` and `unit_plots`, which alone need matplotlib.
"""

from rnnjax.analysis.ablation import Ablation, Tally, ablate, unit_means
from rnnjax.analysis.fixed_points import FixedPoints, find_fixed_points, visited_states
from rnnjax.analysis.flat import (
    Part,
    flat_step,
    flatten_state,
    state_parts,
    state_size,
    trajectory,
    unflatten_state,
)
from rnnjax.analysis.gates import LeafStatistics, UnitStatistics, unit_statistics
from rnnjax.analysis.gradient_flow import GradientFlow, GradientLost, gradient_flow, gradient_lost, kept_share
from rnnjax.analysis.jacobians import (
    JacobianSpectrum,
    RecurrentBound,
    jacobian_spectrum,
    recurrent_bound,
    step_jacobians,
)
from rnnjax.analysis.labels import LABELS, Label, label_from_name, label_text, register_label
from rnnjax.analysis.lyapunov import LyapunovSpectrum, kaplan_yorke_dimension, lyapunov_spectrum
from rnnjax.analysis.recording import (
    SymbolModel,
    Window,
    leaves_of,
    read_text,
    record,
    text_values,
)
from rnnjax.analysis.search import LabelSearch, UnitScore, auc, search_units
from rnnjax.analysis.units import Leaf, Unit, parse_unit

__all__ = [
    "LABELS",
    "Ablation",
    "FixedPoints",
    "GradientFlow",
    "GradientLost",
    "JacobianSpectrum",
    "Label",
    "LabelSearch",
    "Leaf",
    "LeafStatistics",
    "LyapunovSpectrum",
    "Part",
    "RecurrentBound",
    "SymbolModel",
    "Tally",
    "Unit",
    "UnitScore",
    "UnitStatistics",
    "Window",
    "ablate",
    "auc",
    "find_fixed_points",
    "flat_step",
    "flatten_state",
    "gradient_flow",
    "gradient_lost",
    "jacobian_spectrum",
    "kaplan_yorke_dimension",
    "kept_share",
    "label_from_name",
    "label_text",
    "leaves_of",
    "lyapunov_spectrum",
    "parse_unit",
    "read_text",
    "record",
    "recurrent_bound",
    "register_label",
    "search_units",
    "state_parts",
    "state_size",
    "step_jacobians",
    "text_values",
    "trajectory",
    "unflatten_state",
    "unit_means",
    "unit_statistics",
    "visited_states",
]
