"""`python -m hsd.audit`: the losslessness certificate, by exact enumeration of toy worlds."""
