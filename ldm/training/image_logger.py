"""ControlNet's `cldm.logger`, by its reference name: scripts that train by Trainer.fit make one first."""

import logging
from typing import Any

import pytorch_lightning as pl

logger = logging.getLogger(__name__)


class ImageLogger(pl.Callback):
    """A callback that only says how training goes here, where scripts/train.py keeps grids of samples."""

    def __init__(self, batch_frequency: int = 2000, **options: Any) -> None:
        super().__init__()
        self.batch_freq = batch_frequency
        logger.warning(
            "Trainer.fit does not train this model; scripts/train.py --config "
            "configs/training/controlnet_*.yaml does, and keeps grids of samples (docs/TRAINING.md)"
        )
