"""All that needs torch: models, views, class sub-models, depth slices, training, averaging.

Invariant: nothing here knows of peers or sockets.
"""
