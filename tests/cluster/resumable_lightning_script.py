"""A user's own Lightning script that can go on, nothing of hpcdist in it. Its loader has workers."""

import os
import sys
import time

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

LAST = os.path.join(os.environ["HPCDIST_CHECKPOINT_DIR"], "last.ckpt")


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        time.sleep(0.02)
        return self.layer(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class SaveAndStop(pl.Callback):
    def on_train_epoch_end(self, trainer, module):
        asked = os.path.exists(os.environ["HPCDIST_STOP_FILE"])
        if trainer.strategy.reduce_boolean_decision(asked, all=False):
            trainer.save_checkpoint(LAST)
            sys.exit(75)


pl.seed_everything(0)
data = DataLoader(
    TensorDataset(torch.arange(256.0).reshape(64, 4) / 256),
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    multiprocessing_context=os.environ["WORKERS"],
)
trainer = pl.Trainer(
    accelerator="cpu",
    devices=1,
    num_nodes=2,
    max_epochs=30,
    use_distributed_sampler=False,  # Lightning 2.6.6 gives the first epoch after a resume the order of epoch 0
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    callbacks=[SaveAndStop()],
)
if __name__ == "__main__":
    model = Model()
    trainer.fit(model, data, ckpt_path=LAST if os.path.exists(LAST) else None)
    print(f"weights {[parameter.sum().item() for parameter in model.parameters()]}", flush=True)
