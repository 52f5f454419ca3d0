"""What a job's end and `hpcdist seff` put beside the job's curves in TensorBoard."""

from hpcdist.jobs.job import Job
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import JobRecord


def write_boards(job: Job, efficiency: Efficiency | None, record: JobRecord | None = None) -> None:
    """Writes a job's figures, where its time went, and what its ranks used over time; a run without curves gets none.

    Args:
        job: The job.
        efficiency: Its figures; nothing is written without any, or of a job that is not over.
        record: Its record; None joins one from the figures.
    """
    if efficiency is None or efficiency.live or efficiency.state == "PENDING":
        return
    # Only here: TensorBoard's writer takes longer to import than everything else such a command does.
    from hpcdist.jobs import tensorboard

    folder = tensorboard.find_folder(job.folder.path, job.run.path.parents[2])
    if folder is None:
        return
    record = record or job.join(efficiency)
    training = next((rank.training for rank in record.ranks if rank.training), None)
    tensorboard.write_efficiency(folder, efficiency, training)
    tensorboard.write_record(folder, record)
    tensorboard.write_usage(folder, job.folder.curves())
