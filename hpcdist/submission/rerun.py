"""The same run again, from what its `job.json` says, with options changed."""

import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from hpcdist.config.job import EXCLUSIVE, JOB_KEYS, TABLES, JobSpec, Layout, build_job, check_keys, option_types
from hpcdist.config.project import Project
from hpcdist.config.secrets import part_secrets
from hpcdist.config.training import Training
from hpcdist.errors import UsageError
from hpcdist.records.store import RunRecord, new_run_name
from hpcdist.submission.prepare import PreparedJob, prepare
from hpcdist.text import dashed, underscored


class Rerun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that could be submitted again now.

    Attributes:
        prepared: It, under a new name.
        differences: Options that are not as they were: then and now, by the options' names without dashes.
    """

    prepared: PreparedJob
    differences: dict[str, tuple[str | None, str | None]]


def parse_changes(texts: list[str]) -> dict[str, Any]:
    """`option=value` as options by their names, typed as the command line and TOML have them; an empty value unsets.

    Raises:
        UsageError: There is no such option (the nearest is named), no `=`, or the value is of another kind.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        name = underscored(key.strip().removeprefix("--"))
        if not equals:
            raise UsageError(f"--set {text!a} has no '='", "write --set option=value, for example --set nodes=2")
        check_keys([name], "--set")
        parsed = _parse_value(name, value) if value else None
        if name in TABLES and name in changes and parsed is not None:
            parsed = {**changes[name], **parsed}
        changes[name] = parsed
    return changes


def _parse_value(name: str, value: str) -> Any:
    try:
        if value[:1] in ("[", "{") and name in (*TABLES, "command", "setup"):
            return tomllib.loads(f"value = {value}")["value"]
        if name in TABLES:
            key, equals, inner = value.partition("=")
            if name == "env" and not equals:
                raise UsageError(f"--set env={value!a} has no second '='", "write --set env=NAME=VALUE")
            return {key.removeprefix("--"): inner}
        if name == "command":
            return shlex.split(value)
        if name == "setup":
            return [value]
        return msgspec.convert(value, option_types()[name], strict=False)
    except (ValueError, msgspec.ValidationError) as error:
        raise UsageError(f"--set {name}={value!a}: {error}", "hpcdist submit --help has each option's form") from None


def change_job(job: JobSpec, changes: Mapping[str, Any]) -> JobSpec:
    """The job with options changed; None puts an option back to its default, tables are merged by key.

    Raises:
        UsageError: The options exclude each other or can't be used.
    """
    options = flatten(job)
    for name, value in changes.items():
        for pair in EXCLUSIVE:
            # The one that is set replaces the one that was; of two that are set both stay, and are refused.
            if value is not None and name in pair and pair[1 - pair.index(name)] not in changes:
                options.pop(pair[1 - pair.index(name)], None)
        options[name] = {**options.get(name, {}), **value} if isinstance(value, Mapping) else value
    return build_job(options, "rerun")


def flatten(job: JobSpec) -> dict[str, Any]:
    """A job's options by their names."""
    own = {name: getattr(job, name) for name in JOB_KEYS}
    return {**own, **msgspec.structs.asdict(job.layout), **msgspec.structs.asdict(job.training)}


def prepare_rerun(record: RunRecord, root: Path, changes: Mapping[str, Any], run: str | None = None) -> Rerun:
    """A run again: its options, site, template, interpreter and folder, under a new name.

    What it depended on is left out: those jobs are over, and Slurm refuses to wait for jobs it has forgotten.

    Without `run` the new run gets a name of its own.

    Raises:
        UsageError: An option can't be used, or the template is gone.
    """
    check_keys(changes, "rerun")
    job = change_job(record.job, {"dependency": None, **changes})
    prepared = prepare(
        job,
        Project(root=root, site=record.site),
        backend=record.backend,
        run=run or new_run_name(job),
        template=Path(record.template) if record.template else None,
        workdir=Path(record.workdir),
        python=record.python if record.python and Path(record.python).exists() else None,
    )
    prepared = msgspec.structs.replace(prepared, rerun_of=record.run)
    python = prepared.paths.python
    # The site may list more secrets now than it did then.
    differences = find_differences(part_secrets(record.job, record.site.secrets)[0], prepared.spec)
    if record.python is not None and python != record.python:
        differences["python"] = (record.python, python)
    return Rerun(prepared=prepared, differences=differences)


def find_differences(then: JobSpec, now: JobSpec) -> dict[str, tuple[str | None, str | None]]:
    """Options that differ, then and now, in the order of the layout's, the job's and the training's."""
    before, after = flatten(then), flatten(now)
    order = [*Layout.__struct_fields__, *JobSpec.__struct_fields__, *Training.__struct_fields__]
    changed = [name for name in order if name in before and before[name] != after[name]]
    return {dashed(name): (_show(before[name]), _show(after[name])) for name in changed}


def _show(value: Any) -> str | None:
    """A value as the command line has it."""
    if value is None or value in ((), {}):
        return None
    if isinstance(value, Mapping):
        return " ".join(f"{key}={text}" for key, text in value.items())
    return shlex.join(value) if isinstance(value, tuple | list) else str(value)
