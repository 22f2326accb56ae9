"""Means that one bad contribution can't spoil: of many at once (``means``), and of a merge of two (``merging``)."""
