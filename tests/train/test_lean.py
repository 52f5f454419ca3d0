"""The lean step beside Lightning's own: the same weights, rates, counts and hooks, for fewer calls."""

import cProfile
import pstats

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from hpcdist.train.lean import NoProfiler, take_lean_steps

STEPS = 24  # of epochs of ten: the last one is cut short


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(4, 3)
        self.heard = []

    def training_step(self, batch, batch_idx):
        self.heard.append(("step", batch_idx, self.trainer.global_step))
        return self.layer(batch).square().sum()

    def validation_step(self, batch, batch_idx):
        self.heard.append(("test", batch_idx))

    def on_before_backward(self, loss):
        self.heard.append(("loss", loss.item()))

    def on_after_backward(self):
        self.heard.append("backward")

    def on_before_optimizer_step(self, optimizer):
        self.heard.append(("optimizer", optimizer.param_groups[0]["lr"]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=STEPS + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Listener(pl.Callback):
    def on_after_backward(self, trainer, module):
        module.heard.append("listener's backward")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        module.heard.append(("begin", batch_idx, trainer.optimizers[0].param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        module.heard.append(("end", batch_idx, trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"]))


def train(*, lean, precision="32-true"):
    module = Net()
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        precision=precision,
        callbacks=[Listener(), pl.Callback(), pl.Callback()],
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        profiler=NoProfiler() if lean else None,
    )
    if lean:
        take_lean_steps(trainer, module)
    images = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    profile = cProfile.Profile()
    profile.runcall(trainer.fit, module, DataLoader(images, 2), DataLoader(images[:1]))
    return (
        module,
        (trainer.fit_loop.state_dict(), trainer.fit_loop.epoch_loop._batches_that_stepped),
        pstats.Stats(profile).total_calls,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_lean_step_does_what_lightning_s_does(precision):
    plain, plain_state, plain_calls = train(lean=False, precision=precision)
    lean, lean_state, lean_calls = train(lean=True, precision=precision)
    assert lean.heard == plain.heard
    assert [one for one in lean.heard if one[0] == "end"][-1][1:3] == (3, STEPS)
    for ours, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert lean_state == plain_state
    assert plain_calls - lean_calls > 1000 * STEPS, (lean_calls, plain_calls)
