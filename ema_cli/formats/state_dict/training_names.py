"""Names of what trainers save beside the weights: state of the training, and what they note down."""

from __future__ import annotations

import re

from ema_cli.text import regex

_TRAINING_STATE = regex(
    r"optimi[sz]er|(?:optims?|schedulers?)(?!(?-i:[a-z]))|(?:^|[_.])(?:(?:grad_|amp_|loss_)?scaler|opt_states?|rng|dataloader|callbacks|loops|grads?|gradients?)(?:[_.\d]|s?$)",
    re.IGNORECASE,
)
_RECORDS = regex(
    r"(?:^|[_.])(?:loss(?:es)?|criteri(?:on|a)|metrics?|fitness|history|hyper_?parameters|hparams|args|cfg|config|sampler"
    r"|scores?)(?:_(?:fn|state|state_dict)|[_.]?[0-9]+)?$",
    re.IGNORECASE,
)
"""Names of what a trainer notes down: no part of the model even if it has tensors."""
_WITHOUT_MATRICES = regex(r"scheduler|scaler|criteri(?:on|a)|loss(?:es)?_fn", re.IGNORECASE)
"""Names of parts that have matrices only if these are trained. Metrics and loops have matrices of their own."""
OF_OPTIMIZERS = frozenset(
    {
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "exp_inf"),
        *("momentum_buffer", "square_avg", "acc_delta"),
    }
)
"""Names in the state of an optimizer, for each parameter; see ``torch/optim``."""


def is_training_state(name: str) -> bool:
    """Whether a part of a checkpoint is state of the training, judged by its name."""
    return _TRAINING_STATE.search(name) is not None


def is_record(name: str) -> bool:
    """Whether a part of a checkpoint is a loss, a metric or a setting, judged by its name."""
    return _RECORDS.search(name) is not None


def has_no_matrices(name: str) -> bool:
    """Whether matrices in a part of this name must be trained, although the name says state of the training."""
    return _WITHOUT_MATRICES.search(name) is not None
