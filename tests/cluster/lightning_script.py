"""A user's Lightning script that asks for the wrong number of devices."""

import pytorch_lightning as pl
from pytorch_lightning.demos.boring_classes import BoringModel

trainer = pl.Trainer(accelerator="cpu", devices=3, num_nodes=1, logger=False, max_steps=1, enable_checkpointing=False)
trainer.fit(BoringModel())
