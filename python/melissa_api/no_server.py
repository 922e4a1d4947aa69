"""The calls of a solver in a study that is offline: they are checked, and do nothing."""

from numpy.typing import ArrayLike

__all__ = ["NoServer"]


class NoServer:
    """Takes the place of a connection to the server where there is none to come (``MELISSA_OFFLINE=1``)."""

    def __init__(self) -> None:
        """Know no field yet."""
        self._declared: set[str] = set()

    def init(self, field_name: str, size: int, dtype: str) -> bool:
        """Say whether the field is a new one."""
        is_new = field_name not in self._declared
        self._declared.add(field_name)
        return is_new

    def send(self, field_name: str, values: ArrayLike) -> None:
        """Send nothing."""

    def finalize(self) -> None:
        """Wait for nobody."""
