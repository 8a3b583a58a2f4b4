"""Types of values about which only the data decide: objects of JSON files, arrays of any numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

Json = Mapping[str, Any]  # an object of a JSON file; whoever reads a value checks it
JsonObject = dict[str, Any]  # the same, to be filled in
Array = NDArray[Any]  # numbers of any type
