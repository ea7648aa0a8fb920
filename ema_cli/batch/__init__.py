"""Many training runs, one average each (``ema-avg batch``)."""
