"""From bundles on disk to models that serve. One that cannot be served leaves the others serving."""

from __future__ import annotations

import hashlib
import importlib.resources
import logging
from collections.abc import Callable
from pathlib import Path

from export.bundle import (
    GOLDEN_FILE,
    GRAPHS_FOLDER,
    MANIFEST_FILE,
    TOKENIZER_FOLDER,
    Bundle,
    BundleError,
    Manifest,
)
from export.runners.gpu.device import DeviceUnavailableError
from export.runners.protocol import RunnerError
from model.tokenizer import TokenizerError
from server import log
from server.config import ServeConfig, Target
from server.exam.entrance import NotServableError
from server.metrics import Metrics
from server.models import KnownModel, ModelState, ServedModel
from server.opening import Opener
from server.service.health import RESERVED_NAMES

_log = logging.getLogger(__name__)

_FORESEEN = (BundleError, DeviceUnavailableError, RunnerError, TokenizerError, NotServableError)


class LoadError(Exception):
    """No model can be served; one line says why."""


def find_bundles(models: Path | None) -> list[Path]:
    """The bundles at ``models``: itself, or the directories in it, hidden ones left out; None: the bundled demo.

    Raises:
        LoadError: there is none.
    """
    path = Path(str(importlib.resources.files("server") / "assets")) if models is None else models
    try:
        if (path / MANIFEST_FILE).is_file():
            return [path]
        if not path.is_dir():
            raise LoadError(f"{path}: got no directory, wanted a bundle or a directory of bundles")
        # A bundle that is being written lies in a hidden directory beside its place.
        found = sorted(child for child in path.iterdir() if not child.name.startswith(".") and _may_be_bundle(child))
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror}") from error
    if not found:
        hint = "; this installation has no bundled demo, name a bundle with --models PATH" if models is None else ""
        raise LoadError(f"{path}: got no {MANIFEST_FILE} here or one level below, wanted a bundle{hint}")
    return found


def _may_be_bundle(path: Path) -> bool:
    """Whether ``path`` holds a manifest, or what else a bundle holds: then opening it will tell what it lacks."""
    try:
        marks = ((path / folder).is_dir() for folder in (GRAPHS_FOLDER, TOKENIZER_FOLDER))
        return (path / MANIFEST_FILE).is_file() or (path / GOLDEN_FILE).is_file() or any(marks)
    except OSError:
        return True  # opening it will tell why it cannot be looked at


def load_models(
    config: ServeConfig,
    metrics: Metrics,
    *,
    opener: Opener | None = None,
    on_found: Callable[[KnownModel], None],
    on_waiting: Callable[[ServedModel, Bundle], None] = lambda _model, _bundle: None,
) -> None:
    """Load every model and let each sit its exam; what cannot be served is logged and counted.

    Args:
        config: the server's settings.
        metrics: where the models' metrics live.
        opener: opens the bundles; None: one of its own.
        on_found: called with each model as soon as it can be told about. It does not serve yet; one whose bundle is
            broken, but tells its name, never will. A model that takes the place of one of its name serves already.
        on_waiting: called with each model that serves on another target until it has TensorRT engines.

    Raises:
        LoadError: no model serves, or the target that was asked for cannot run here.
    """
    opener = opener or Opener(config, metrics)
    try:
        opener.source.check()
    except DeviceUnavailableError as error:
        raise LoadError(f"--target {config.target.value}: {error}") from error
    loader = _Loader(opener, metrics, on_found, on_waiting)
    for path in find_bundles(config.models):
        loader.open(path)
    loader.tell_of_broken()
    loader.admit_all()
    if not loader.serving:
        raise LoadError("; ".join(loader.complaints))


class _Loader:
    """What has been found so far.

    Attributes:
        complaints: why bundles are not served, one line each.
        serving: how many models serve.
    """

    def __init__(
        self,
        opener: Opener,
        metrics: Metrics,
        on_found: Callable[[KnownModel], None],
        on_waiting: Callable[[ServedModel, Bundle], None],
    ) -> None:
        self.complaints: list[str] = []
        self.serving = 0
        self._opener = opener
        self._metrics = metrics
        self._on_found = on_found
        self._on_waiting = on_waiting
        self._opened: dict[str, tuple[ServedModel, Bundle]] = {}
        self._spare: dict[str, list[Bundle]] = {}
        self._broken: dict[str, KnownModel] = {}

    def open(self, path: Path) -> None:
        """Open the bundle at ``path``; it is only looked at where a bundle before it has its name."""
        try:
            bundle = Bundle.open(path)
            name = bundle.manifest.name
            if name in RESERVED_NAMES:
                wanted = f"none of {', '.join(RESERVED_NAMES)}: they name health services"
                raise BundleError(f"{path}: name: got {name!r}, wanted {wanted}")
            if name in self._opened:
                self._spare.setdefault(name, []).append(bundle)
                return
            model = self._opener.open(bundle)
        except Exception as error:
            broken = _read_manifest(path)
            if broken is not None:
                self._broken.setdefault(broken.name, broken)
            self._refuse(path, error, model="" if broken is None else broken.name)
            return
        self._opened[name] = model, bundle
        self._tell_of(model)

    def tell_of_broken(self) -> None:
        """Make known the models of broken bundles whose names are not taken by sound ones."""
        for name, model in self._broken.items():
            if name not in self._opened and name not in RESERVED_NAMES:
                self._tell_of(model)

    def _tell_of(self, model: KnownModel) -> None:
        self._metrics.model_found(model.name, now=lambda: model.now)
        self._on_found(model)

    def admit_all(self) -> None:
        """Let every opened model serve that may; of several bundles with one name, the first that may."""
        for model, bundle in self._opened.values():
            served = self._admit(model, bundle)
            for spare in self._spare.get(model.name, ()):
                if served is None:
                    served = self._admit_spare(spare)
                else:
                    wanted = f"another than {served.path} has"
                    fault = BundleError(f"{spare.path}: name: got a second model {model.name!r}, wanted {wanted}")
                    self._refuse(spare.path, fault, model=model.name)
            # Not before: while another may yet serve in its place, calls are told to come back.
            if served is None:
                model.state = ModelState.FAILED

    def _admit(self, model: ServedModel, bundle: Bundle) -> Bundle | None:
        """Let ``model`` serve; returns its bundle, or None where it may not."""
        try:
            self._opener.admit(model, bundle)
        except Exception as error:
            # Before the state says so: a server that leaves closes the runners of all models that do not load.
            model.close_runners()
            model.certified = not isinstance(error, NotServableError)
            self._refuse(bundle.path, error, model=model.name)
            return None
        self.serving += 1
        if model.backend.target is not Target.TENSORRT and self._opener.source.wants_engines(bundle):
            self._on_waiting(model, bundle)
        return bundle

    def _admit_spare(self, bundle: Bundle) -> Bundle | None:
        """Let the model of ``bundle`` serve in place of the one known by its name; as ``_admit``."""
        try:
            model = self._opener.open(bundle)
        except Exception as error:
            self._refuse(bundle.path, error, model=bundle.manifest.name)
            return None
        served = self._admit(model, bundle)
        if served is not None:
            self._tell_of(model)
        return served

    def _refuse(self, path: Path, error: Exception, *, model: str) -> None:
        """Log and count a bundle that is not served."""
        reason = str(error) if isinstance(error, _FORESEEN) else f"unforeseen {type(error).__name__}, see the log"
        if str(path) not in reason:
            reason = f"{path}: {reason}"
        if not isinstance(error, _FORESEEN):
            _log.error("a bundle failed in a way that nobody foresaw", exc_info=error)
        log.event(_log, "bundle is not served", level=logging.ERROR, model=model, bundle=str(path), reason=reason)
        self._metrics.bundle_refused()
        self.complaints.append(reason)


def _read_manifest(path: Path) -> KnownModel | None:
    """What a broken bundle can still tell of itself; None: nothing."""
    try:
        text = (path / MANIFEST_FILE).read_bytes()
        manifest = Manifest.from_json(text, where=str(path / MANIFEST_FILE))
    except (OSError, BundleError):
        return None
    return KnownModel(manifest=manifest, digest=hashlib.sha256(text).hexdigest(), state=ModelState.FAILED)
