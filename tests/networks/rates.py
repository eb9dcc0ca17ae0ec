"""Rates of everything that `rnnjax.Regularized` can drop."""

RATES = {
    "input_dropout": 0.3,
    "recurrent_dropout": 0.4,
    "zoneout_h": 0.2,
    "zoneout_c": 0.5,
    "weight_dropout": 0.3,
    "output_dropout": 0.25,
}
