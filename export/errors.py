"""Errors of exporting. A bundle's own faults are ``export.bundle.BundleError``."""


class ExportError(ValueError):
    """A checkpoint cannot be exported, or a file of golden sentences cannot be read; one line says why."""
