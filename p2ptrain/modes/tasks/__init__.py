"""Class sub-models: each peer trains some classes in some of the channels; with one group, replicas."""
