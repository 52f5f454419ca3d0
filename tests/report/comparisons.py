"""Comparisons made by hand, for the tests of plots and of the HTML report."""

import statistics

from hpcdist.config.job import Layout
from hpcdist.config.site import Prices
from hpcdist.records.ranks import StepSplit, Straggler, TestResult
from hpcdist.report.model import Comparison, Fit, Prediction, Spread, Statement, TrialRow, VariantRow
from hpcdist.studies.study import Study

# 2026-03-01 12:00 UTC
NOON_S = 1772366400.0
SCRIPT = "#!/bin/bash\n# {label}\n#SBATCH --nodes={nodes}\n\nsrun python -m hpcdist.train --epochs 3 || rc=$?\nexit 0\n"


def spread(values):
    values = [value for value in values if value is not None]
    if not values:
        return None
    return Spread(median=statistics.median(values), low=min(values), high=max(values), count=len(values))


def trial(label, repeat, wall_s, images_per_s, gpus, *, price=2.5, accuracy=0.989, jitter=(0.0, 0.012, -0.017)):
    factor = 1 + jitter[(repeat - 1) % 3]
    wall_s, images_per_s = wall_s * factor, images_per_s / factor
    start_s = NOON_S + 600 * repeat
    accuracy += 0.0006 * (repeat - 2)
    return TrialRow(
        repeat=repeat,
        run=f"mnist-{label.replace(' ', '-').replace('=', '')}-{repeat}a{repeat}",
        job_id=str(4200 + repeat + 10 * gpus),
        state="COMPLETED",
        ranks_worked=gpus,
        wall_s=wall_s,
        starting_s=6.2 + 0.1 * repeat + 0.4 * gpus,
        queued_s=12.0 * repeat,
        images_per_s=images_per_s,
        time_to_target_s=wall_s * 0.62,
        accuracy=accuracy,
        cpu_efficiency=0.93 - 0.05 * gpus,
        memory_efficiency=0.31 + 0.01 * repeat,
        gpu_efficiency=0.82 - 0.07 * gpus,
        gpu_hours=gpus * wall_s / 3600,
        cost=price and price * gpus * wall_s / 3600,
        cost_to_target=price and price * gpus * wall_s * 0.62 / 3600,
        ettr=0.71 - 0.04 * gpus,
        started_at_s=start_s,
        ended_at_s=start_s + wall_s,
        nodes="n1" if label.startswith("1x") else "n[1-2]",
        tests=tuple(
            TestResult(step=118 * at, accuracy=accuracy - 0.02 / at + 0.0066, at_s=start_s + wall_s * (0.1 + 0.29 * at))
            for at in (1, 2, 3)
        ),
    )


FIGURES = (
    *("wall_s", "starting_s", "images_per_s", "time_to_target_s", "accuracy", "cpu_efficiency", "memory_efficiency"),
    *("gpu_efficiency", "gpu_hours", "cost", "cost_to_target", "ettr"),
)


def row(layout, trials, base_images_per_s, *, settings=None, label=None, **more):
    done = [one for one in trials if one.state == "COMPLETED"]
    measured = {name: spread([getattr(one, name) for one in done]) for name in FIGURES}
    rates = [one.images_per_s for one in done if one.images_per_s is not None]
    ranks = layout.world_size
    speedup = spread([rate / base_images_per_s for rate in rates])
    efficiency = spread([rate / base_images_per_s / ranks for rate in rates])
    if more.get("is_baseline"):
        speedup = efficiency = Spread(median=1.0, low=1.0, high=1.0, count=len(rates))
    return VariantRow(
        label=label or layout.name,
        layout=layout,
        settings=settings or {},
        ranks_asked=ranks,
        ranks_worked=ranks if done else None,
        trials=tuple(trials),
        speedup=speedup,
        efficiency=efficiency,
        **measured,
        **more,
    )


def split(data_ms, compute_ms, communication_ms, other_ms):
    parts = [part / 1000 for part in (data_ms, compute_ms, communication_ms, other_ms)]
    return StepSplit(
        steps=310,
        data_s=parts[0],
        compute_s=parts[1],
        communication_s=parts[2],
        other_s=parts[3],
        step_s=sum(parts),
    )


def scripts(rows):
    return {
        one.run: SCRIPT.format(label=row.label, nodes=row.layout.nodes) for row in rows for one in row.trials if one.run
    }


CONDITIONS = {
    "hpcdist": "0.4.0",
    "PyTorch": "2.14.1+cu130",
    "Lightning": "2.6.6",
    "Slurm": "22.05.8",
    "GPU": "NVIDIA A100-SXM4-80GB",
    "First job started": "2026-03-01 12:10 UTC",
    "Last job ended": "2026-03-01 12:41 UTC",
}


def plain():
    """1x1, 1x2, 2x1 and 2x2, three times each, all of them well."""
    layouts = [Layout(nodes=nodes, gpus=gpus) for nodes, gpus in ((1, 1), (1, 2), (2, 1), (2, 2))]
    figures = [(412.0, 8200.0), (221.0, 15800.0), (236.0, 14700.0), (151.0, 24300.0)]
    splits = [split(0.8, 58.2, 0.0, 3.4), split(0.9, 29.3, 1.3, 1.0), split(0.9, 29.6, 3.4, 1.1), split(1, 15, 4.3, 1)]
    rows = tuple(
        row(
            layout,
            [trial(layout.name, repeat, *figure, layout.world_size) for repeat in (1, 2, 3)],
            8200.0,
            split=parts,
            is_baseline=layout.world_size == 1,
            waiting_s=None if layout.world_size == 1 else 0.0006 * layout.world_size,
            straggler=None if layout.world_size == 1 else Straggler(rank=1, host="n2", slowdown=1.03),
            bytes_per_step=None if layout.world_size == 1 else 228_136,
            latency_s=None if layout.world_size == 1 else 0.00031,
            bandwidth_bytes_per_s=None if layout.world_size == 1 else 1.1e9,
            global_batch_size=512,
            same_as={"1x2": ("2x1",), "2x1": ("1x2",)}.get(layout.name, ()),
        )
        for layout, figure, parts in zip(layouts, figures, splits, strict=True)
    )
    return Comparison(
        study=Study(
            name="mnist-layouts",
            options={"epochs": 3, "lr": 0.01, "batch_size": 512},
            layouts=tuple({"nodes": one.nodes, "gpus": one.gpus} for one in layouts),
            repeat=3,
            target_accuracy=0.985,
            prices=Prices(per_gpu_hour=2.5, currency="EUR"),
        ),
        made_at_s=NOON_S + 3000,
        rows=rows,
        verdict=(
            Statement(
                code="fastest",
                sentence="2x2 is the fastest: 2 min 31 s, 2.96 times as fast as 1x1, at 74 % efficiency.",
                variant="2x2",
                evidence={"wall_s": 151.0, "speedup": 2.963, "efficiency": 0.741},
            ),
            Statement(
                code="cheapest",
                sentence="1x1 is the cheapest: 0.29 EUR a run; two GPUs in one node cost 7 % more and halve the time.",
                variant="1x1",
                advice="Use 1x2 for daily work.",
                evidence={"cost": 0.286, "cost_of_1x2": 0.307, "currency": "EUR"},
            ),
            Statement(
                code="communication",
                sentence="In 2x2 communication takes 20 % of a step: 4.3 of 21.3 ms.",
                variant="2x2",
                advice="A global batch of 1024 or more, or bf16 gradients, would halve its share.",
                evidence={"communication_s": 0.0043, "step_s": 0.0213, "share": 0.202},
            ),
        ),
        fits=(
            Fit(law="amdahl", ranks=(1, 2, 2, 4), parameters={"serial_fraction": 0.1136}),
            Fit(law="karp-flatt", ranks=(1, 2, 2, 4), parameters={"e_2": 0.076, "e_4": 0.117, "rises": 1.0}),
            Fit(law="usl", ranks=(1, 2, 2, 4), note="not enough points: 3 numbers of ranks, 4 are needed"),
        ),
        predictions=(
            Prediction(
                variant="2x1",
                wall_s=228.0,
                low_s=210.0,
                high_s=246.0,
                basis="1x1, 1x2 and the probe between two nodes",
                measured_s=236.0,
            ),
            Prediction(variant="2x2", wall_s=140.0, low_s=120.0, high_s=165.0, basis="1x1 and 1x2"),
        ),
        currency="EUR",
        not_measured=("energy: no source on this cluster", "GPU memory bandwidth: not asked for"),
        conditions=CONDITIONS,
        scripts=scripts(rows),
    )


def sparse():
    """One variant that worked and says little, one whose only job failed, one that was denied: None everywhere."""
    layouts = [Layout(nodes=1, gpus=1), Layout(nodes=1, gpus=2), Layout(nodes=4, gpus=8)]
    failed = TrialRow(
        repeat=1,
        run="mnist-1x2-bad",
        job_id="77",
        state="FAILED",
        reason="rank 1 on n1 left with exit code 1: CUDA out of memory",
    )
    denied = TrialRow(repeat=1, state="REFUSED", reason="sbatch: error: Requested node configuration is not available")
    rows = (
        VariantRow(
            label="1x1",
            layout=layouts[0],
            ranks_asked=1,
            is_baseline=True,
            trials=(TrialRow(repeat=1, run="mnist-1x1-ok", job_id="76", state="COMPLETED"),),
        ),
        VariantRow(label="1x2", layout=layouts[1], ranks_asked=2, trials=(failed,)),
        VariantRow(label="4x8", layout=layouts[2], ranks_asked=32, trials=(denied,)),
    )
    return Comparison(
        study=Study(name="sparse", layouts=tuple({"nodes": one.nodes, "gpus": one.gpus} for one in layouts)),
        made_at_s=NOON_S,
        rows=rows,
        not_measured=("throughput: the program does not report it",),
    )


def sweep():
    """Two layouts, four batch sizes."""
    layouts = [Layout(nodes=1, gpus=1), Layout(nodes=2, gpus=1)]
    rows = []
    for at, batch in enumerate((64, 256, 1024, 4096)):
        base = 5200.0 + 900 * at
        for layout in layouts:
            ranks = layout.world_size
            gain = 1.0 if ranks == 1 else (0.7, 1.2, 1.65, 1.88)[at]
            label = f"{layout.name} batch_size={batch}"
            trials = [
                trial(label, repeat, 3.2e6 / (base * gain), base * gain, ranks, price=None, accuracy=0.991 - 0.004 * at)
                for repeat in (1, 2, 3)
            ]
            parts = split(0.4, 3.0 * batch / 256 / ranks, 0.0 if ranks == 1 else 2.8, 0.4)
            rows.append(
                row(
                    layout,
                    trials,
                    base,
                    settings={"batch_size": batch},
                    label=label,
                    split=parts,
                    is_baseline=ranks == 1,
                    global_batch_size=batch,
                )
            )
    return Comparison(
        study=Study(
            name="batch-size",
            layouts=tuple({"nodes": one.nodes, "gpus": one.gpus} for one in layouts),
            grid={"batch_size": (64, 256, 1024, 4096)},
            repeat=3,
            target_accuracy=0.98,
        ),
        made_at_s=NOON_S + 9000,
        rows=tuple(rows),
        verdict=(
            Statement(
                code="small-batch",
                sentence="At a batch of 64 a second node is slower than one: 0.70 times as fast.",
                variant="2x1 batch_size=64",
                advice="Use a batch of 1024 or more.",
                evidence={"images_per_s": 3640.0, "batch_per_rank": 32.0},
            ),
        ),
        conditions=CONDITIONS,
        scripts=scripts(rows),
    )


HOSTILE = '<script>alert("x")</script>'


def hostile():
    """Names, reasons and scripts that would do harm on a page that does not escape them."""
    layout = Layout(nodes=1, gpus=2)
    label = f"1x1 tag={HOSTILE}"
    nasty = f"_$\\frac{{1}}{{$ '\" & ]]> --> {HOSTILE} \x1b[31m\u202eevil\x00 \udc80 " + "x" * 80
    trials = [
        trial("1x1", 1, 60.0, 900.0, 1),
        TrialRow(repeat=2, run=f"run-{HOSTILE}", job_id="1'\"", state="FAILED", reason=nasty, nodes=HOSTILE),
    ]
    rows = (
        row(Layout(nodes=1, gpus=1), trials, 900.0, label=label, settings={"tag": HOSTILE}, is_baseline=True,
            split=split(1, 2, 0, 1)),
        row(layout, [trial("1x2", 1, 33.0, 1700.0, 2)], 900.0, label=nasty, settings={"tag": nasty}),
    )  # fmt: skip
    return Comparison(
        study=Study(
            name=f"{HOSTILE}'\"&",
            options={"command": ["sh", "-c", HOSTILE]},
            layouts=({"nodes": 1, "gpus": 1}, {"nodes": 1, "gpus": 2}),
            grid={"tag": (HOSTILE, nasty)},
            prices=Prices(per_gpu_hour=1.0, currency="<b>"),
        ),
        made_at_s=NOON_S,
        rows=rows,
        verdict=(Statement(code="<i>", sentence=f"{HOSTILE} is the fastest", advice=nasty, evidence={nasty: HOSTILE}),),
        predictions=(Prediction(variant=label, wall_s=60, low_s=50, high_s=70, basis=HOSTILE, measured_s=61),),
        fits=(Fit(law="amdahl", settings={"tag": nasty}, note=HOSTILE),),
        currency="<b>",
        not_measured=(HOSTILE,),
        conditions={HOSTILE: nasty},
        scripts={
            f"run-{HOSTILE}": f"#!/bin/bash\necho '</pre></details>{HOSTILE}'\n\tindented  twice\x07\n",
            str(trials[0].run): "#!/bin/bash\ntrue\n",
            str(rows[1].trials[0].run): "#!/bin/bash\nfalse\n",
        },
    )
