"""All that needs torch: models, views, class sub-models, pipelines, training, averaging.

Invariant: nothing here knows of peers or sockets.
"""
