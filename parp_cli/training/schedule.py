"""The tri-stage learning-rate schedule of wav2vec 2.0's fine-tuning."""

_INITIAL_SCALE = 0.01
"""Share of the peak at which the warm-up begins."""


def tri_stage(update: int, updates: int, *, warmup: float, hold: float, decay: float, final_scale: float) -> float:
    """Share of the peak learning rate at `update`, counted from 0.

    Linear from 0.01 to 1 over `warmup` of the updates, 1 over `hold`, then exponentially down to `final_scale` over
    `decay`, where it stays.
    """
    rising, holding, falling = (round(share * updates) for share in (warmup, hold, decay))
    if update < rising:
        return _INITIAL_SCALE + (1 - _INITIAL_SCALE) * update / rising
    if update < rising + holding:
        return 1.0
    progress = min(1.0, (update - rising - holding) / max(1, falling))
    return float(final_scale**progress)
