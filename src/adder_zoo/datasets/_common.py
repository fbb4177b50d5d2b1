from __future__ import annotations

DATA_ENVIRONMENT = "ADDER_ZOO_DATA"  # names the folder that holds the data sets, where no argument does


class DataError(ValueError):
    """The data is missing, damaged, or other data than was asked for. The message says what to do."""
