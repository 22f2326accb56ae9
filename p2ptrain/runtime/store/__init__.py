"""Blobs and manifests on disk."""
