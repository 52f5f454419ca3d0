"""`jobs/studies/<name>/`: what a study is, and which run each of its trials is or is a task of."""

import os
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from hpcdist.config.job import Backend
from hpcdist.config.secrets import is_secret
from hpcdist.errors import HpcdistError, NotFoundError, NotReadyError
from hpcdist.files import lock_file, write_atomically
from hpcdist.studies.study import Study, Trial, Variant
from hpcdist.studies.study_file import check_study_name

LOCK_PATIENCE_S = 10.0


class StudyState(msgspec.Struct, frozen=True, kw_only=True):
    """`study.json`.

    Attributes:
        study: What its file said when it was last run.
        source: That file.
        backend: What runs it; a comparison is of one.
        workdir: Folder its jobs start in.
        root: The project's folder.
        variants: Its variants, with the site's defaults, without the values of secrets.
        trials: Its trials, sent or not.
        former: Trials that its file no longer has, and attempts that were made again.
        created_at_s: When it was first run, seconds since the epoch.
        updated_at_s: When it was last run.
    """

    study: Study
    source: str | None = None
    backend: Backend
    workdir: str
    root: str
    variants: tuple[Variant, ...]
    trials: tuple[Trial, ...]
    former: tuple[Trial, ...] = ()
    created_at_s: float
    updated_at_s: float

    @property
    def folder(self) -> Path:
        """Its folder."""
        return folder_of(self.study.name, Path(self.root))


def folder_of(name: str, root: Path) -> Path:
    """The folder of a study.

    Raises:
        UsageError: The name can't be a folder's.
    """
    return root / "jobs" / "studies" / check_study_name(name)


def load_study(name: str, root: Path) -> StudyState:
    """A study that was run here.

    Raises:
        NotFoundError: There is none of that name.
        HpcdistError: Its file is damaged.
    """
    path = folder_of(name, root) / "study.json"
    try:
        state = msgspec.json.decode(path.read_bytes(), type=StudyState)
    except FileNotFoundError:
        known = ", ".join(name_studies(root)) or "there is none yet"
        raise NotFoundError(f"no study here is called {name!r}: {known}", "hpcdist study run FILE starts one") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise HpcdistError(f"{path}: {error}", "move the folder away, and run the study again") from None
    return msgspec.structs.replace(state, root=str(root))


def find_study(name: str, root: Path) -> StudyState | None:
    """As `load_study`; None where there is none."""
    return load_study(name, root) if (folder_of(name, root) / "study.json").is_file() else None


def name_studies(root: Path) -> list[str]:
    """The names of the studies that were run here."""
    return sorted(path.parent.name for path in (root / "jobs" / "studies").glob("*/study.json"))


def list_studies(root: Path) -> list[StudyState]:
    """The studies that were run here, the newest first."""
    found = [load_study(name, root) for name in name_studies(root)]
    return sorted(found, key=lambda state: -state.updated_at_s)


def write_state(state: StudyState) -> None:
    """Replaces `study.json`.

    Raises:
        HpcdistError: The disk is full or not writable.
    """
    try:
        write_atomically(state.folder / "study.json", msgspec.json.format(msgspec.json.encode(state)) + b"\n")
    except OSError as error:
        raise HpcdistError(f"can't write {state.folder}: {error.strerror}", "free some space") from None


def without_secrets(variant: Variant, listed: Collection[str]) -> Variant:
    """The variant as it may be kept."""
    env = {name: value for name, value in variant.options.get("env", {}).items() if not is_secret(name, listed)}
    options = {**variant.options, "env": env} if "env" in variant.options else variant.options
    return msgspec.structs.replace(variant, options=options)


@contextmanager
def locked(name: str, root: Path) -> Iterator[None]:
    """Holds a study against another process that runs it; where the file system locks nothing it goes on without.

    Raises:
        NotReadyError: Another one is at it.
        HpcdistError: The disk is not writable.
    """
    folder = folder_of(name, root)
    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            file = stack.enter_context((folder / ".lock").open("w"))
            deadline = time.monotonic() + LOCK_PATIENCE_S
            while lock_file(file.fileno(), wait=False) is False:
                if time.monotonic() > deadline:
                    hint = f"hpcdist study status {name} shows how far it is"
                    raise NotReadyError(f"another hpcdist is running {name}", hint)
                time.sleep(0.1)
        except OSError as error:
            hint = "free some space or change the folder"
            raise HpcdistError(f"can't write {folder}: {error.strerror}", hint) from None
        yield


def ask_to_stop(state: StudyState) -> None:
    """Has a process that is running the study stop before its next job."""
    (state.folder / ".stop").touch()


def is_asked_to_stop(state: StudyState) -> bool:
    """Whether somebody asked for that since the study was last run."""
    return (state.folder / ".stop").exists()


def forget_stop(state: StudyState) -> None:
    """Begins anew after that."""
    (state.folder / ".stop").unlink(missing_ok=True)


def same_folder(one: str, other: str) -> bool:
    """Whether two paths are one folder."""
    return os.path.realpath(one) == os.path.realpath(other)
