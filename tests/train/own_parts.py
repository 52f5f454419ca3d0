"""A LightningModule and its data, as somebody who knows nothing of hpcdist writes them."""

import numpy
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Tiny(pl.LightningModule):
    """Tells positive numbers from negative ones."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        values, labels = batch
        loss = nn.functional.cross_entropy(self.layers(values), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        values, labels = batch
        self.log("val_acc", (self.layers(values).argmax(1) == labels).float().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Noisy(Tiny):
    """Draws from numpy."""

    def __init__(self):
        super().__init__()
        numpy.random.seed(1)

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * numpy.random.rand()


class Sized(Tiny):
    """Needs to be told something."""

    def __init__(self, size):
        super().__init__()
        self.size = size


class Numbers(pl.LightningDataModule):
    def _split(self, count, seed):
        values = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
        return TensorDataset(values, (values.sum(1) > 0).long())

    def train_dataloader(self):
        return DataLoader(self._split(320, 1), batch_size=16)

    def val_dataloader(self):
        return DataLoader(self._split(100, 2), batch_size=50)


def no_class():
    pass
