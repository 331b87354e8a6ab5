"""The version of this package, and of those that its results depend on."""

from importlib import metadata

DEPENDS_ON = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch")


def version_of(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


__version__ = version_of("deeplab-jax") or "unknown"
"""It is unknown where the package is run from its source without being installed."""


def versions() -> str:
    """A line for a bug report: this package, and the others that are installed."""
    found = {name: version_of(name) for name in DEPENDS_ON}
    others = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    return f"deeplab-jax {__version__} ({others})"
